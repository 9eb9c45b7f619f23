"""Which membranes of a bank act on which rows: an index first, the rule on its candidates only, then reading.

γ is that of asking the rule about every membrane of the bank (`permeability.index` says why); membranes with γ = 0
everywhere are neither read nor moved.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from semipermeable.equip.bank.bank import Bank, usable_gate
from semipermeable.equip.gating import (
    UNKNOWN_TEXT,
    OnUnknown,
    RowState,
    checked,
    finite,
    remembered,
    text_of,
    unknown_decision,
)
from semipermeable.errors import AttachError, PermeabilityError
from semipermeable.files.bank import Record
from semipermeable.files.foreign import resolve_foreign
from semipermeable.hosts import Host
from semipermeable.membrane import Membrane
from semipermeable.permeability import (
    Constant,
    Decision,
    EncodedPrompt,
    GatedConcept,
    PerConcept,
    Permeability,
    Trace,
    Transport,
)
from semipermeable.runtime.prompt_book import Entry

__all__ = ["BankGate"]

_MAX_TEXTS = 4096
_BATCH = 64


class BankGate:
    """Decides γ of a bank's membranes for the rows of denoiser calls, remembering decisions per text.

    Args:
        host: encodes texts.
        denoiser: what membranes of other formats find their sites in.
        bank: the membranes.
        rule: the permeability rule; "transport" asks the bank's index first, a rule of one's own asks about all.
        strength: factor for all, or by concept name; 1 for those not named.
        on_unknown: what to do with conditional rows whose text is not known; "open" opens the whole bank.
        trace: receives the decisions on candidates; all other membranes have γ = 0.

    Raises:
        PermeabilityError: if a strength or the rule names a concept that is not in the bank.
    """

    def __init__(
        self,
        host: Host,
        denoiser: nn.Module,
        bank: Bank,
        rule: Permeability,
        strength: float | Mapping[str, float],
        on_unknown: OnUnknown,
        trace: Trace,
    ) -> None:
        self._host = host
        self._denoiser = denoiser
        self._bank = bank
        self._rule = rule
        # By their exact classes: one of a user's own that is derived from them may open more than the index knows of.
        self._named = rule.names if type(rule) is PerConcept else ()
        self._indexed = type(rule.otherwise if type(rule) is PerConcept else rule) is Transport
        self._strength = strength
        self._on_unknown: OnUnknown = on_unknown
        self._trace = trace
        self._empty: EncodedPrompt = host.encode([""])[0]
        self._decided: OrderedDict[str, dict[str, Decision]] = OrderedDict()
        self._version = bank.version
        self._concepts: dict[str, tuple[Record, GatedConcept]] = {}
        self._resolved: WeakKeyDictionary[Membrane, Membrane] = WeakKeyDictionary()
        self._last: tuple[Sequence[Entry | None], list[bool], bool, int, Sequence[Membrane], Tensor] | None = None
        self._check_names()

    def select(
        self, found: Sequence[Entry | None], conditional: Sequence[bool], *, named: bool = False
    ) -> tuple[Sequence[Membrane], Tensor]:
        """Return the membranes that act on some row, and their strengths, shape (rows, membranes), fp32 on CPU.

        Args:
            found: what the prompt book knows of each row.
            conditional: which rows the host takes for conditional.
            named: whether the pipeline itself said so: then an unconditional row is closed whatever its text.

        Raises:
            UnknownPromptError: if a conditional row is unknown and `on_unknown="error"`.
            MembraneFileError: if a membrane that acts cannot be read.
        """
        last, version = self._last, self._bank.version
        # A sampler asks again at every step, with the very same answer of the prompt book.
        if last is not None and last[0] is found and last[1:4] == (list(conditional), named, version):
            return last[4], last[5]
        known = [entry if row or not named else None for entry, row in zip(found, conditional, strict=True)]
        while True:
            try:
                membranes, strengths = self._select(known, conditional)
                break
            except AttachError:
                # Another thread took out a membrane between the decision and the reading.
                if version == self._bank.version:
                    raise
                version = self._bank.version
        self._last = (found, list(conditional), named, version, membranes, strengths)
        return membranes, strengths

    def _select(self, found: Sequence[Entry | None], conditional: Sequence[bool]) -> tuple[Sequence[Membrane], Tensor]:
        texts = [text_of(entry, is_conditional) for entry, is_conditional in zip(found, conditional, strict=True)]
        decided = self.decide([text for text in texts if isinstance(text, str)])
        rows: list[dict[str, Decision]] = []
        for text in texts:
            if text is RowState.CLOSED:
                rows.append({})
            elif isinstance(text, str):
                rows.append(decided[text])
            else:
                rows.append(self._unknown())
        names = sorted({name for row in rows for name, decision in row.items() if decision.gamma})
        membranes = tuple(self._membrane(name) for name in names)
        strengths = torch.zeros(len(rows), len(names))
        for row, decisions in enumerate(rows):
            for column, (name, membrane) in enumerate(zip(names, membranes, strict=True)):
                if name in decisions:
                    strengths[row, column] = decisions[name].gamma ** membrane.gate_power * self._factor(name)
        self._record(texts, rows)
        return membranes, strengths

    def decide(self, texts: Sequence[str]) -> dict[str, dict[str, Decision]]:
        """Return, for every text, the decisions on the concepts that it might open; γ of all others is 0.

        Args:
            texts: prompts; decisions are remembered until the bank changes.
        """
        if self._version != self._bank.version:
            self._version = self._bank.version
            self._decided.clear()
            self._concepts = {name: kept for name, kept in self._concepts.items() if self._bank.holds(kept[0])}
        found = remembered(self._decided, texts)
        new = [text for text in dict.fromkeys(texts) if text not in found]
        if new:
            found |= self._decide(new, self._host.encode(new))
            self._decided.update({text: found[text] for text in new})
            while len(self._decided) > _MAX_TEXTS:
                self._decided.popitem(last=False)
        return found

    def _decide(self, texts: Sequence[str], encoded: Sequence[EncodedPrompt]) -> dict[str, dict[str, Decision]]:
        rows: dict[str, list[int]] = {}
        for row, names in enumerate(self._candidates(encoded)):
            for name in sorted(names):
                rows.setdefault(name, []).append(row)
        found: dict[str, dict[str, Decision]] = {text: {} for text in texts}
        for name, concept in self._gated(list(rows)).items():
            asked = [encoded[row] for row in rows[name]]
            decisions = checked(name, self._rule.decide(asked, concept), len(asked))
            for row, decision in zip(rows[name], decisions, strict=True):
                found[texts[row]][name] = decision
        return found

    def _candidates(self, encoded: Sequence[EncodedPrompt]) -> Sequence[set[str]]:
        if type(self._rule) is Constant and self._rule.gamma == 0.0:
            return [set[str]() for _ in encoded]
        if not self._indexed:
            return [set(self._bank.names) for _ in encoded]
        constant = {name for name in self._named if name in self._bank}
        found = self._bank.candidates(encoded, self._host.text_encoder_hash())
        return [names | constant for names in found]

    def _gated(self, names: Sequence[str]) -> dict[str, GatedConcept]:
        """Return what the rule is asked about; the names of concepts asked about for the first time are encoded."""
        records = {name: self._bank.record(name) for name in names}
        held = ((name, self._concepts.get(name)) for name in names)
        found = {name: kept for name, kept in held if kept is not None and kept[0] is records[name]}
        new = [name for name in names if name not in found]
        texts = [text for name in new for text in records[name].story.concept.names]
        encoded = [
            row for start in range(0, len(texts), _BATCH) for row in self._host.encode(texts[start : start + _BATCH])
        ]
        at = 0
        for name in new:
            record = records[name]
            concept = record.story.concept
            own = tuple(map(self._kept, encoded[at : at + len(concept.names)]))
            at += len(concept.names)
            gate = usable_gate(record, self._host.text_encoder_hash()) if record.gate else None
            found[name] = self._concepts[name] = (record, GatedConcept(concept, own, self._empty, gate))
        return {name: found[name][1] for name in names}

    def _kept(self, name: EncodedPrompt) -> EncodedPrompt:
        """Return what the rule reads of a name: `Transport` its tokens, which are a thousandth of its states."""
        if not self._indexed:
            return name
        return replace(name, states=name.states.new_zeros(0, name.states.shape[-1]), pooled=None)

    def _unknown(self) -> dict[str, Decision]:
        decision = unknown_decision(self._on_unknown)
        return dict.fromkeys(self._bank.names, decision) if decision.gamma else {}

    def _record(self, texts: Sequence[str | RowState], rows: Sequence[dict[str, Decision]]) -> None:
        traced: set[str] = set()
        for text, decisions in zip(texts, rows, strict=True):
            shown = text if isinstance(text, str) else UNKNOWN_TEXT
            if text is RowState.CLOSED or shown in traced:
                continue
            traced.add(shown)
            for name, decision in decisions.items():
                self._trace.add(shown, name, decision)

    def _membrane(self, name: str) -> Membrane:
        membrane = self._bank.read(name)
        if not membrane.foreign_names:
            return membrane
        if membrane not in self._resolved:
            self._resolved[membrane] = resolve_foreign(membrane, self._denoiser)
        return self._resolved[membrane]

    def _factor(self, name: str) -> float:
        return float(self._strength.get(name, 1.0) if isinstance(self._strength, Mapping) else self._strength)

    def _check_names(self) -> None:
        factors = self._strength if isinstance(self._strength, Mapping) else {"": self._strength}
        named = list(self._strength) if isinstance(self._strength, Mapping) else []
        named += self._rule.names if isinstance(self._rule, PerConcept) else []
        for name in named:
            if name not in self._bank:
                raise PermeabilityError(f"{name!r} is named, but it is not in {self._bank!r}")
        for name, factor in factors.items():
            finite(factor, f"strength of {name!r}" if name else "strength")
