"""Membranes at work inside a denoiser: paths, per-row strengths, and the memory of which row came from which prompt.

Nothing here is global: strengths belong to one denoiser call (`Binding.activate`, a context variable) or
to one training run (`TrainableBinding.gamma`, an attribute, so that gradient checkpointing recomputes with the same
strengths).
"""

from semipermeable.runtime.binding import DEVICE_BYTES, Binding
from semipermeable.runtime.folded import require_plain
from semipermeable.runtime.paths import Path, PathCounter, PathCounts
from semipermeable.runtime.prompt_book import PromptBook, Role, RowText
from semipermeable.runtime.side_by_side import SHARED, SideBySide
from semipermeable.runtime.trainable import TrainableBinding
from semipermeable.runtime.twin import uncompiled
from semipermeable.runtime.view import gated_view, hand_back, pass_name, refuse_rewritten, view_owner

__all__ = [
    "DEVICE_BYTES",
    "SHARED",
    "Binding",
    "Path",
    "PathCounter",
    "PathCounts",
    "PromptBook",
    "Role",
    "RowText",
    "SideBySide",
    "TrainableBinding",
    "gated_view",
    "hand_back",
    "pass_name",
    "refuse_rewritten",
    "require_plain",
    "uncompiled",
    "view_owner",
]
