"""Frozen, versioned benchmarks: which concepts are erased, and which pictures are drawn to see what that did."""

from semipermeable.evaluation.benchmarks.plan import Axis, Benchmark, Case, Judges, Role, Row, Sampler, Target
from semipermeable.evaluation.benchmarks.published import Request
from semipermeable.evaluation.benchmarks.registry import benchmark, benchmark_names, published_names

__all__ = [
    "Axis",
    "Benchmark",
    "Case",
    "Judges",
    "Request",
    "Role",
    "Row",
    "Sampler",
    "Target",
    "benchmark",
    "benchmark_names",
    "published_names",
]
