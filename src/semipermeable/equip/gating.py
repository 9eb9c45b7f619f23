"""From the rows of a denoiser call to the strength of every membrane in every row.

A row is closed where it is known to be only a negative prompt, or where the host says that it is unconditional. A
conditional row whose text is known gets γ from the permeability rule; an unknown one follows `on_unknown`.
"""

import enum
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from semipermeable.errors import PermeabilityError, UnknownPromptError
from semipermeable.hosts import Host
from semipermeable.membrane import Membrane
from semipermeable.permeability import Decision, EncodedPrompt, GatedConcept, Permeability, Trace
from semipermeable.runtime import Role
from semipermeable.runtime.prompt_book import Entry

__all__ = ["OnUnknown", "RowGate", "strengths_for"]

OnUnknown = Literal["open", "closed", "error"]

_UNKNOWN = "(prompt embeddings of unknown origin)"
_MAX_CACHED = 4096


class _Row(enum.Enum):
    """A row that has no text to decide on."""

    CLOSED = enum.auto()
    UNKNOWN = enum.auto()


class RowGate:
    """Decides γ for the rows of denoiser calls, remembering decisions per text.

    Args:
        host: encodes texts.
        membranes: in the order of the columns of the strengths.
        rule: the permeability rule.
        strength: factor per membrane, in the same order.
        on_unknown: what to do with conditional rows whose text is not known.
        trace: receives every decision.
    """

    def __init__(
        self,
        host: Host,
        membranes: Sequence[Membrane],
        rule: Permeability,
        strength: Sequence[float],
        on_unknown: OnUnknown,
        trace: Trace,
    ) -> None:
        self._host = host
        self._membranes = tuple(membranes)
        self._rule = rule
        self._strength = torch.tensor(list(strength), dtype=torch.float32)
        self._power = torch.tensor([float(m.gate_power) for m in membranes])
        self._on_unknown = on_unknown
        self._trace = trace
        self._decided: OrderedDict[str, tuple[Decision, ...]] = OrderedDict()
        self._concepts = _gated_concepts(host, self._membranes)
        self._last: tuple[Sequence[Entry | None], list[bool], Tensor] | None = None

    def strengths(self, found: Sequence[Entry | None], conditional: Sequence[bool]) -> Tensor:
        """Return the strengths, shape (rows, membranes), fp32 on CPU, and trace the decisions.

        Args:
            found: what the prompt book knows of each row.
            conditional: which rows the host takes for conditional.

        Raises:
            UnknownPromptError: if a conditional row is unknown and `on_unknown="error"`.
        """
        # A sampler asks again at every step: the book then gives the very same answer, which is neither decided nor
        # traced a second time.
        last = self._last
        if last is not None and last[0] is found and last[1] == list(conditional):
            return last[2]
        strengths = self._strengths(found, conditional)
        self._last = (found, list(conditional), strengths)
        return strengths

    def _strengths(self, found: Sequence[Entry | None], conditional: Sequence[bool]) -> Tensor:
        texts = [_text_of(entry, is_conditional) for entry, is_conditional in zip(found, conditional, strict=True)]
        self._decide([text for text in texts if isinstance(text, str)])
        gamma = torch.zeros(len(texts), len(self._membranes))
        traced: set[str] = set()
        for row, text in enumerate(texts):
            if text is _Row.CLOSED:
                continue
            decisions = self._decided[text] if isinstance(text, str) else self._unknown()
            gamma[row] = torch.tensor([decision.gamma for decision in decisions])
            shown = text if isinstance(text, str) else _UNKNOWN
            if shown not in traced:
                traced.add(shown)
                for membrane, decision in zip(self._membranes, decisions, strict=True):
                    self._trace.add(shown, membrane.name, decision)
        return gamma**self._power * self._strength

    def _unknown(self) -> tuple[Decision, ...]:
        if self._on_unknown == "error":
            raise UnknownPromptError(
                "a row's prompt embeddings were not made by this pipeline's encode_prompt while attached, so no rule "
                'can read its words. Encode inside `with attach(...)`, or choose on_unknown="open" or "closed".'
            )
        gamma = 1.0 if self._on_unknown == "open" else 0.0
        return tuple(Decision(gamma, f"unknown embeddings, on_unknown={self._on_unknown!r}") for _ in self._membranes)

    def _decide(self, texts: Sequence[str]) -> None:
        new = [text for text in dict.fromkeys(texts) if text not in self._decided]
        if not new:
            return
        encoded = self._host.encode(new)
        columns = [self._checked(m, self._rule.decide(encoded, c), len(new)) for m, c in self._concepts]
        while len(self._decided) > _MAX_CACHED:
            self._decided.popitem(last=False)
        for index, text in enumerate(new):
            self._decided[text] = tuple(column[index] for column in columns)

    def _checked(self, membrane: Membrane, decisions: Sequence[Decision], expected: int) -> Sequence[Decision]:
        if len(decisions) != expected:
            raise PermeabilityError(f"the rule returned {len(decisions)} decisions for {expected} prompts")
        for decision in decisions:
            if not 0.0 <= decision.gamma <= 1.0:
                raise PermeabilityError(
                    f"the rule gave γ = {decision.gamma} for concept {membrane.name!r}; γ must lie in [0, 1], "
                    "a larger effect is asked for with `strength`"
                )
        return decisions


def _text_of(entry: Entry | None, conditional: bool) -> str | _Row:
    """The text to decide on, or why there is none."""
    if entry is None:
        return _Row.UNKNOWN if conditional else _Row.CLOSED
    if entry.role == Role.NEGATIVE or (Role.NEGATIVE in entry.role and not conditional):
        return _Row.CLOSED
    return entry.text


def _gated_concepts(host: Host, membranes: Sequence[Membrane]) -> list[tuple[Membrane, GatedConcept]]:
    """Encode every concept's names; a stored gate is used only if it was fitted on this very text encoder."""
    empty: EncodedPrompt = host.encode([""])[0]
    concepts: list[tuple[Membrane, GatedConcept]] = []
    for membrane in membranes:
        gate = membrane.gate
        made_on = membrane.provenance.text_encoder_hash
        if gate is not None and made_on and made_on != host.text_encoder_hash():
            gate = None
        encoded = tuple(host.encode(list(membrane.concept.names)))
        concepts.append((membrane, GatedConcept(membrane.concept, encoded, empty, gate)))
    return concepts


def strengths_for(membranes: Sequence[Membrane], strength: float | Mapping[str, float]) -> list[float]:
    """Return one factor per membrane.

    Raises:
        PermeabilityError: if a factor is not finite or a name is not attached.
    """
    names = [m.name for m in membranes]
    if isinstance(strength, Mapping):
        unknown = sorted(set(strength) - set(names))
        if unknown:
            raise PermeabilityError(
                f"strength names {unknown[0]!r}, which is not attached; attached: {', '.join(names)}"
            )
        factors = [float(strength.get(name, 1.0)) for name in names]
    else:
        factors = [float(strength)] * len(names)
    for name, factor in zip(names, factors, strict=True):
        if not torch.isfinite(torch.tensor(factor)):
            raise PermeabilityError(f"strength of {name!r} must be a finite number, found {factor}")
    return factors
