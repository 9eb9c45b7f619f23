"""Who looks at pictures: the judges of bundled models, and those of real ones, from the hub or from files."""

from semipermeable.evaluation.judges.panel import Panel
from semipermeable.evaluation.judges.sources import JudgeSources, open_panel

__all__ = ["JudgeSources", "Panel", "open_panel"]
