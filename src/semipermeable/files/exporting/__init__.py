"""Write membranes as adapters that other programs load, and add several up into one. See `docs/formats.md`."""

from semipermeable.files.exporting.adapters import LAYOUTS, export
from semipermeable.files.exporting.merging import merge

__all__ = ["LAYOUTS", "export", "merge"]
