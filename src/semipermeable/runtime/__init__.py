"""Membranes at work inside a denoiser: hooks, per-row strengths, and the memory of which row came from which prompt.

Nothing here is global: strengths belong to one denoiser call (`Binding.activate`, a context variable) or
to one training run (`TrainableBinding.gamma`, an attribute, so that gradient checkpointing recomputes with the same
strengths).
"""

from semipermeable.runtime.binding import Binding
from semipermeable.runtime.prompt_book import PromptBook, Role
from semipermeable.runtime.trainable import TrainableBinding
from semipermeable.runtime.view import gated_view, refuse_rewritten, view_owner

__all__ = ["Binding", "PromptBook", "Role", "TrainableBinding", "gated_view", "refuse_rewritten", "view_owner"]
