"""Load a model, draw pictures with membranes, compare them, and write them to disk."""

from semipermeable.generation.drawing import Drawing, Job, draw, generate, jobs_for
from semipermeable.generation.grid import Row, comparison_grid
from semipermeable.generation.models import load_for_training, load_model
from semipermeable.generation.output import staged_file, staged_folder
from semipermeable.generation.png import picture_facts, picture_name, read_facts, write_png

__all__ = [
    "Drawing",
    "Job",
    "Row",
    "comparison_grid",
    "draw",
    "generate",
    "jobs_for",
    "load_for_training",
    "load_model",
    "picture_facts",
    "picture_name",
    "read_facts",
    "staged_file",
    "staged_folder",
    "write_png",
]
