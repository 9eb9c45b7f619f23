"""Membranes and concepts on disk. The format is specified in `docs/file-format.md`."""

from semipermeable.files.concepts import load_concepts, save_concepts
from semipermeable.files.loading import load
from semipermeable.files.native import save

__all__ = ["load", "load_concepts", "save", "save_concepts"]
