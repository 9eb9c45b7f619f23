"""Who looks at pictures: the judges of bundled models, and those of real ones, from the hub or from files."""

from semipermeable.evaluation.judges.panel import Panel, RealPictures
from semipermeable.evaluation.judges.sources import JudgeSources, open_panel

__all__ = ["JudgeSources", "Panel", "RealPictures", "open_panel"]
