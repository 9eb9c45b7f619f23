"""From the rows of a denoiser call to the strength of every membrane in every row.

A row is closed where it is known to be only a negative prompt, or where the host says that it is unconditional. A
conditional row whose text is known gets γ from the permeability rule; an unknown one follows `on_unknown`.
"""

import enum
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Literal, SupportsFloat, TypeVar, cast

import torch
from torch import Tensor

from semipermeable.errors import PermeabilityError, UnknownPromptError
from semipermeable.hosts import Host
from semipermeable.membrane import GateState, Membrane
from semipermeable.permeability import Decision, EncodedPrompt, GatedConcept, Permeability, Trace
from semipermeable.runtime import Role
from semipermeable.runtime.prompt_book import Entry

__all__ = ["OnUnknown", "RowGate", "finite", "gate_for", "gated_concept", "remembered", "strengths_for"]

D = TypeVar("D")

OnUnknown = Literal["open", "closed", "error"]

UNKNOWN_TEXT = "(prompt embeddings of unknown origin)"
_MAX_CACHED = 4096


class RowState(enum.Enum):
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
        self._on_unknown: OnUnknown = on_unknown
        self._trace = trace
        self._decided: OrderedDict[str, tuple[Decision, ...]] = OrderedDict()
        self._concepts = [(membrane, gated_concept(host, membrane)) for membrane in self._membranes]
        self._last: tuple[Sequence[Entry | None], list[bool], bool, Tensor] | None = None

    def strengths(self, found: Sequence[Entry | None], conditional: Sequence[bool], *, named: bool = False) -> Tensor:
        """Return the strengths, shape (rows, membranes), fp32 on CPU, and trace the decisions.

        Args:
            found: what the prompt book knows of each row.
            conditional: which rows the host takes for conditional.
            named: whether the pipeline itself said so: then an unconditional row is closed whatever its text.

        Raises:
            UnknownPromptError: if a conditional row is unknown and `on_unknown="error"`.
        """
        # A sampler asks again at every step: the book then gives the very same answer, which is neither decided nor
        # traced a second time.
        last = self._last
        if last is not None and last[0] is found and last[1:3] == (list(conditional), named):
            return last[3]
        known = [entry if row or not named else None for entry, row in zip(found, conditional, strict=True)]
        strengths = self._strengths(known, conditional)
        self._last = (found, list(conditional), named, strengths)
        return strengths

    def select(
        self, found: Sequence[Entry | None], conditional: Sequence[bool], *, named: bool = False
    ) -> tuple[Sequence[Membrane], Tensor]:
        """Return the membranes and their `strengths`."""
        return self._membranes, self.strengths(found, conditional, named=named)

    def _strengths(self, found: Sequence[Entry | None], conditional: Sequence[bool]) -> Tensor:
        texts = [text_of(entry, is_conditional) for entry, is_conditional in zip(found, conditional, strict=True)]
        decided = self._decide([text for text in texts if isinstance(text, str)])
        rows: list[list[float]] = []
        traced: set[str] = set()
        for text in texts:
            if text is RowState.CLOSED:
                rows.append([0.0] * len(self._membranes))
                continue
            decisions = decided[text] if isinstance(text, str) else self._unknown()
            rows.append([decision.gamma for decision in decisions])
            shown = text if isinstance(text, str) else UNKNOWN_TEXT
            if shown not in traced:
                traced.add(shown)
                for membrane, decision in zip(self._membranes, decisions, strict=True):
                    self._trace.add(shown, membrane.name, decision)
        return torch.tensor(rows, dtype=torch.float32) ** self._power * self._strength

    def _unknown(self) -> tuple[Decision, ...]:
        return (unknown_decision(self._on_unknown),) * len(self._membranes)

    def _decide(self, texts: Sequence[str]) -> dict[str, tuple[Decision, ...]]:
        found = remembered(self._decided, texts)
        new = [text for text in dict.fromkeys(texts) if text not in found]
        if new:
            encoded = self._host.encode(new)
            columns = [checked(m.name, self._rule.decide(encoded, c), len(new)) for m, c in self._concepts]
            made = {text: tuple(column[index] for column in columns) for index, text in enumerate(new)}
            found |= made
            self._decided.update(made)
            while len(self._decided) > _MAX_CACHED:
                self._decided.popitem(last=False)
        return found


def unknown_decision(on_unknown: OnUnknown) -> Decision:
    """Return what is decided on a conditional row whose text is not known.

    Raises:
        UnknownPromptError: if `on_unknown="error"`.
    """
    if on_unknown == "error":
        raise UnknownPromptError(
            "a row's prompt embeddings were not made by this pipeline's encode_prompt while attached, so no rule "
            'can read its words. Encode inside `with attach(...)`, or choose on_unknown="open" or "closed".'
        )
    return Decision(1.0 if on_unknown == "open" else 0.0, f"unknown embeddings, on_unknown={on_unknown!r}")


def checked(name: str, decisions: Sequence[Decision], expected: int) -> Sequence[Decision]:
    """Return what a rule decided, after checking it.

    Args:
        name: the concept's name.
        decisions: one per prompt.
        expected: number of prompts.

    Raises:
        PermeabilityError: if there are too many or too few, or a γ lies outside [0, 1].
    """
    if len(decisions) != expected:
        raise PermeabilityError(f"the rule returned {len(decisions)} decisions for {expected} prompts")
    for decision in decisions:
        if not 0.0 <= decision.gamma <= 1.0:
            raise PermeabilityError(
                f"the rule gave γ = {decision.gamma} for concept {name!r}; γ must lie in [0, 1], "
                "a larger effect is asked for with `strength`"
            )
    return decisions


def text_of(entry: Entry | None, conditional: bool) -> str | RowState:
    """Return the text to decide on, or why there is none.

    Args:
        entry: what the prompt book knows of a row.
        conditional: whether the host takes it for conditional.
    """
    if entry is None:
        return RowState.UNKNOWN if conditional else RowState.CLOSED
    if entry.role == Role.NEGATIVE or (Role.NEGATIVE in entry.role and not conditional):
        return RowState.CLOSED
    return entry.text


def gated_concept(host: Host, membrane: Membrane) -> GatedConcept:
    """Return what a rule is asked about: a membrane's concept with its names encoded, and its gate.

    A stored gate is used only if it was fitted on this very text encoder.

    Args:
        host: encodes texts.
        membrane: the membrane.
    """
    empty: EncodedPrompt = host.encode([""])[0]
    names = tuple(host.encode(list(membrane.concept.names)))
    return GatedConcept(membrane.concept, names, empty, gate_for(host, membrane))


def gate_for(host: Host, membrane: Membrane) -> GateState | None:
    """Return a membrane's stored gate, or None if it was fitted on another text encoder than the host's."""
    made_on = membrane.provenance.text_encoder_hash
    if membrane.gate is not None and made_on and made_on != host.text_encoder_hash():
        return None
    return membrane.gate


def remembered(decided: Mapping[str, D], texts: Sequence[str]) -> dict[str, D]:
    """Return what has been decided on some texts; one look each, since another thread may forget some meanwhile."""
    held = ((text, decided.get(text)) for text in texts)
    return {text: decisions for text, decisions in held if decisions is not None}


def strengths_for(membranes: Sequence[Membrane], strength: float | Mapping[str, float]) -> list[float]:
    """Return one factor per membrane.

    Raises:
        PermeabilityError: if a factor is no finite number or a name is not attached.
    """
    names = [m.name for m in membranes]
    if isinstance(strength, Mapping):
        unknown = sorted(set(strength) - set(names))
        if unknown:
            raise PermeabilityError(
                f"strength names {unknown[0]!r}, which is not attached; attached: {', '.join(names)}"
            )
        return [finite(strength.get(name, 1.0), f"strength of {name!r}") for name in names]
    return [finite(strength, "strength")] * len(names)


def finite(factor: object, what: str) -> float:
    """Return a factor as a float.

    Args:
        factor: a number.
        what: what it is, for the message.

    Raises:
        PermeabilityError: if it is no finite number.
    """
    try:
        number = math.nan if isinstance(factor, str) else float(cast("SupportsFloat", factor))
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise PermeabilityError(f"{what} must be a finite number, found {factor!r}")
    return number
