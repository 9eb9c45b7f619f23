"""Measure what an erasure does: figures with their intervals, the demo, and reports."""
