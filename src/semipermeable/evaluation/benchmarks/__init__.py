"""Frozen, versioned benchmarks: which concepts are erased, and which pictures are drawn to see what that did."""

from semipermeable.evaluation.benchmarks.plan import Axis, Benchmark, Case, Role, Row, Sampler, Target
from semipermeable.evaluation.benchmarks.registry import benchmark, benchmark_names

__all__ = ["Axis", "Benchmark", "Case", "Role", "Row", "Sampler", "Target", "benchmark", "benchmark_names"]
