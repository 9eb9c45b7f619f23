"""The words every permeability rule speaks: what it sees of a prompt, what it is asked about, what it answers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

from torch import Tensor

from semipermeable.concept import Concept

__all__ = ["Decision", "EncodedPrompt", "Gate", "GatedConcept", "Json", "Permeability", "largest"]

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
"""Anything JSON can hold."""


class Gate(Protocol):
    """A fitted rule as a membrane stores it (`membrane.GateState`, which this layer does not import)."""

    @property
    def kind(self) -> str:
        """Name of the rule that understands it."""
        ...

    @property
    def settings(self) -> Mapping[str, Json]:
        """Numbers and texts."""
        ...

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Name to tensor."""
        ...


@dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """A prompt as the pipeline's text encoder sees it.

    Args:
        text: the prompt.
        token_ids: ids of the prompt's own tokens, without BOS, EOS and padding.
        tokens: the same tokens as texts.
        states: the conditioning the denoiser receives, shape (sequence, dim), fp32 on CPU, with BOS, EOS and, where
            the denoiser reads it, padding.
        pooled: the pooled text encoding, shape (dim,), or None where the encoder has none.
        first: index in `states` of the first own token (1 where the tokenizer writes a BOS).
        room: how many own tokens the encoder's window takes; None: all of `states` but BOS and EOS.
        seen: where the window is full, the part of the text that the tokens were made from; None: not known.
        parts: where a row was made from several texts (`prompt_2`), each of them; the fields above then hold them one
            after the other.
    """

    text: str
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    states: Tensor
    pooled: Tensor | None = None
    first: int = 1
    room: int | None = None
    seen: str | None = None
    parts: "tuple[EncodedPrompt, ...]" = ()

    def each(self) -> "tuple[EncodedPrompt, ...]":
        """Return the texts of the row, each by itself."""
        return self.parts or (self,)


@dataclass(frozen=True, eq=False)
class GatedConcept:
    """A concept whose permeability is asked for.

    Args:
        concept: the concept.
        encoded: its name and aliases, in the order of `concept.names`.
        empty: the empty prompt.
        gate: the fitted rule stored with the membrane, or None.
    """

    concept: Concept
    encoded: tuple[EncodedPrompt, ...]
    empty: EncodedPrompt
    gate: Gate | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """The permeability of one concept for one prompt, and why.

    Args:
        gamma: γ in [0, 1].
        reason: one short clause, e.g. "name found: 'cat'" or "probe 0.03 below 0.61".
        similarity: the rule's score, or None.
        threshold: what the score was held against, or None.
        matched: the words of the prompt that matched.
    """

    gamma: float
    reason: str
    similarity: float | None = None
    threshold: float | None = None
    matched: tuple[str, ...] = field(default=())


def largest(decisions: Iterable[Decision]) -> Decision:
    """Return what counts of the decisions on a row's texts: the one with the largest γ, the first of several."""
    return max(decisions, key=lambda decision: decision.gamma)


@runtime_checkable
class Permeability(Protocol):
    """A rule that gives γ. Anything with this method can be passed as `permeability=`."""

    def decide(self, prompts: Sequence[EncodedPrompt], concept: GatedConcept) -> Sequence[Decision]:
        """Return one decision per prompt, in order."""
        ...
