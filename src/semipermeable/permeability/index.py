"""Which of many concepts a prompt could open, found without asking each one.

`Transport` opens a concept for one of four reasons: a name stands among the prompt's words, a name without words stands
in its text, a name's tokens stand in a prompt without words, or its probe reaches its threshold. The index answers with
a superset of the concepts for which one of these holds; the rule itself is then asked about those only, so γ is that of
asking it about all of them.

Words: a name is found if at most one of its words is misspelt, so one of its first two words is there in some form; a
single word with one slip shares, with the name, a string in which one letter is left out (Garbe's symmetric deletion);
a name that is glued together or hyphened is there as the joined letters. Each is one look-up in a table.
Probes: all of them are one matrix product in fp32, held against the thresholds less the largest rounding error that
the product can have, n 2⁻²⁴ |w| |h| for n terms (Higham, Accuracy and Stability, section 3.1), and twice that.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from semipermeable.concept import Concept
from semipermeable.errors import CalibrationError
from semipermeable.permeability.calibration import Calibration
from semipermeable.permeability.decisions import EncodedPrompt, Gate
from semipermeable.permeability.transport import visible
from semipermeable.permeability.words import Word, forms, found_as_text, is_slip, split

__all__ = ["ConceptIndex"]

K = TypeVar("K", bound=Hashable)

_UNIT = 2.0**-24
_SAFETY = 2.0
_FIRST_WORDS = 2
_SHORTEST_SLIP = 3
"""Shorter names are never looked for in misspelt words (`words.is_slip`)."""


class ConceptIndex(Generic[K]):
    """Concepts by what opens them. Adding or removing one costs no more than its own names."""

    def __init__(self) -> None:
        self._concepts: dict[K, Concept] = {}
        self._words: defaultdict[str, set[K]] = defaultdict(set)
        self._joined: defaultdict[str, set[K]] = defaultdict(set)
        self._slips: defaultdict[str, set[str]] = defaultdict(set)
        self._single: defaultdict[str, set[K]] = defaultdict(set)
        self._texts: defaultdict[str, set[tuple[K, str]]] = defaultdict(set)
        self._always: set[K] = set()
        self._probes: dict[K, Calibration] = {}
        self._screens: list[_Screen[K]] | None = None
        self._longest = 1

    def __len__(self) -> int:
        return len(self._concepts)

    def add(self, key: K, concept: Concept, gate: Gate | None) -> None:
        """Add a concept.

        Args:
            key: what `candidates` shall call it.
            concept: its names count.
            gate: the gate that the rule will be given with it.
        """
        self.remove(key)
        self._concepts[key] = concept
        for table, entry in self._entries(concept):
            if table is self._single and entry not in table:
                for text in _less_one(entry):
                    self._slips[text].add(entry)
            table[entry].add(key)
        for name in _unspaced(concept):
            self._texts[_first(name)].add((key, name))
        self._longest = max([self._longest, *(len(split(name)) for name in concept.names)])
        if gate is None:
            return
        try:
            calibration = Calibration.from_parts(gate.settings, gate.tensors) if gate.kind == "transport" else None
        except CalibrationError:
            calibration = None
        if calibration is None:
            self._always.add(key)  # the rule refuses this gate, and shall say so
        elif calibration.threshold is not None:
            self._probes[key] = calibration
            self._screens = None

    def remove(self, key: K) -> None:
        """Remove a concept; one that is not there is none."""
        concept = self._concepts.pop(key, None)
        if concept is None:
            return
        for table, entry in self._entries(concept):
            table[entry].discard(key)
            if not table[entry]:
                del table[entry]
                for text in _less_one(entry) if table is self._single else ():
                    self._slips[text].discard(entry)
                    if not self._slips[text]:
                        del self._slips[text]
        for name in _unspaced(concept):
            self._texts[_first(name)].discard((key, name))
        self._always.discard(key)
        if self._probes.pop(key, None) is not None:
            self._screens = None

    def candidates(self, prompts: Sequence[EncodedPrompt]) -> list[set[K]]:
        """Return, for every prompt, a superset of the concepts that `Transport` opens."""
        texts = [text for prompt in prompts for text in prompt.each()]
        found = [self._by_words(text) for text in texts]
        if self._screens is None:
            self._screens = _screens(self._probes)
        for screen in self._screens:
            for row, keys in enumerate(screen.reached(texts)):
                found[row].update(keys)
        each = iter(found)
        return [set[K]().union(*(next(each) for _ in prompt.each())) for prompt in prompts]

    def _entries(self, concept: Concept) -> "Iterator[tuple[defaultdict[str, set[K]], str]]":
        for name in concept.names:
            words = [word.text for word in split(name)]
            for word in words[:_FIRST_WORDS]:
                yield from ((self._words, form) for form in forms(word))
            if len(words) == 1 and len(words[0]) >= _SHORTEST_SLIP:
                yield self._single, words[0]
            if words:
                yield from ((self._joined, form) for form in forms("".join(words)))

    def _by_words(self, prompt: EncodedPrompt) -> set[K]:
        if not prompt.text.strip() or not prompt.token_ids:
            return set(self._always)
        text = visible(prompt)
        words = split(text)
        if not words:
            return set(self._concepts)  # tokens decide, and what they are only the tokenizer knows
        found = set(self._always)
        for form in {form for word in words for form in forms(word.text)}:
            found |= self._words.get(form, set())
            near = {name for less in _less_one(form) for name in self._slips.get(less, ())}
            for name in near:
                if is_slip(form, name):
                    found |= self._single[name]
        for glued in self._windows(words):
            for form in forms(glued):
                found |= self._joined.get(form, set())
        if self._texts:
            for character in set(_plain(text)):
                found |= {key for key, name in self._texts.get(character, ()) if found_as_text(name, text)}
        return found

    def _windows(self, words: Sequence[Word]) -> Iterator[str]:
        """Give the letters of all runs of words that no punctuation parts."""
        for start in range(len(words)):
            glued = words[start].text
            yield glued
            for word in words[start + 1 : start + self._longest + _FIRST_WORDS]:
                if not word.tied:
                    break
                glued += word.text
                yield glued


class _Screen(Generic[K]):
    """Probes of one width, as one matrix."""

    def __init__(self, probes: Sequence[tuple[K, Calibration]]) -> None:
        self._keys = [key for key, _ in probes]
        self._weights = torch.stack([calibration.weight for _, calibration in probes]).T.contiguous()
        self._norms = self._weights.double().norm(dim=0)
        self._cutoffs = torch.tensor(
            [float(c.threshold) - c.bias for _, c in probes if c.threshold is not None], dtype=torch.float64
        )

    def reached(self, prompts: Sequence[EncodedPrompt]) -> list[list[K]]:
        """Return, for every prompt, the probes that may reach their threshold."""
        states, owner = _own_states(prompts)
        found: list[list[K]] = [[] for _ in prompts]
        if not len(states):
            return found
        width = self._weights.shape[0]
        if states.shape[1] != width:
            return [list(self._keys) for _ in prompts]  # the rule refuses these gates, and shall say so
        sound = states.isfinite().all(dim=1)
        if not bool(sound.all()):
            # Of a prompt whose states overflowed nothing is known: the rule is asked, and the others are as they were.
            for token in (~sound).nonzero().flatten().tolist():
                found[owner[token]] = list(self._keys)
            owner = [row for row, good in zip(owner, sound.tolist(), strict=True) if good]
            states = states[sound]
            if not owner:
                return found
        slack = _SAFETY * _UNIT * (width + 1) * float(states.double().norm(dim=1).max()) * self._norms
        # One more rounding for the cut-off itself, which becomes fp32.
        cutoffs = (self._cutoffs - slack - 2 * _UNIT * self._cutoffs.abs()).float()
        # x − y ≥ 0 exactly where x ≥ y. Few probes are reached by any token at all, and one maximum finds those several
        # times faster than a look through all pairs.
        above = (states @ self._weights).sub_(cutoffs)
        some = (above.amax(dim=0) >= 0).nonzero().flatten()
        for token, place in (above[:, some] >= 0).nonzero().tolist():
            found[owner[token]].append(self._keys[int(some[place])])
        return found


def _own_states(prompts: Sequence[EncodedPrompt]) -> tuple[Tensor, list[int]]:
    parts: list[Tensor] = []
    owner: list[int] = []
    for row, prompt in enumerate(prompts):
        if not prompt.text.strip() or not prompt.token_ids:
            continue
        part = prompt.states[prompt.first : prompt.first + len(prompt.token_ids) + 1]
        parts.append(part.float())
        owner += [row] * len(part)
    return (torch.cat(parts) if parts else torch.empty(0, 0)), owner


def _screens(probes: "dict[K, Calibration]") -> "list[_Screen[K]]":
    by_width: defaultdict[int, list[tuple[K, Calibration]]] = defaultdict(list)
    for key, calibration in probes.items():
        by_width[calibration.weight.shape[0]].append((key, calibration))
    return [_Screen(several) for several in by_width.values()]


def _less_one(word: str) -> set[str]:
    return {word, *(word[:index] + word[index + 1 :] for index in range(len(word)))}


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKD", text).casefold().replace("’", "'").replace("ʼ", "'")


def _first(name: str) -> str:
    letters: Iterable[str] = (c for c in _plain(name) if unicodedata.category(c) != "Mn" and not c.isspace())
    return next(iter(letters), "")


def _unspaced(concept: Concept) -> list[str]:
    """The names that are looked for as plain text."""
    return [name for name in concept.names if found_as_text(name, name)]
