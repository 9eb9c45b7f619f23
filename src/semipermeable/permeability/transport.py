"""The default permeability: 1 on the concept and its aliases in any wording, exactly 0 elsewhere.

A prompt opens if one of the concept's names stands in it, by tokens or by words (`words.find`), outside every longer
phrase to keep: "cat face" is not "cat". Where no name stands in it, a fitted probe on the text encoder's states
decides; without a calibration the names alone do. The empty prompt is always closed. γ is 0 or 1, nothing between: a
half-open membrane draws half-erased things and moves pictures it should leave alone.

Only what the denoiser can see counts: where a prompt fills the encoder's window, words beyond it are not looked at.
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

from semipermeable.errors import CalibrationError
from semipermeable.permeability.calibration import Calibration
from semipermeable.permeability.decisions import Decision, EncodedPrompt, Gate, GatedConcept, largest
from semipermeable.permeability.probe import at_border, carries_name, token_spans
from semipermeable.permeability.prompts import covered, kept_spans, phrases_around
from semipermeable.permeability.vocabulary import COMPOUNDS, known_words
from semipermeable.permeability.words import Word, find, forms, found_as_text, split

__all__ = ["Transport", "visible"]

_SPACED = re.compile(r"\S+")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_UNKNOWN = frozenset({"<unk>", "[UNK]"})
"""Tokens that stand for any number of letters."""


class _Reading(NamedTuple):
    """What the rule reads in a prompt: its visible text, its words, and the words that are one token."""

    text: str
    words: list[Word]
    whole: set[str]


class _Question(NamedTuple):
    """What the rule asks about a concept: its calibration, the longer phrases around its names, words that are none."""

    calibration: Calibration | None
    around: list[str]
    known: frozenset[str]


class Transport:
    """The calibrated rule. It holds no setting of its own: what was fitted is stored with each membrane.

    What it reads in a prompt and asks about a concept is remembered as long as these objects live: a batch asks many
    concepts about the same prompts, and the next one the same concepts again.
    """

    def __init__(self) -> None:
        self._known = known_words()
        self._compounds = [(phrase, _letters(split(phrase))) for phrase in COMPOUNDS]
        self._readings: WeakKeyDictionary[EncodedPrompt, _Reading] = WeakKeyDictionary()
        self._questions: WeakKeyDictionary[GatedConcept, _Question] = WeakKeyDictionary()

    def decide(self, prompts: Sequence[EncodedPrompt], concept: GatedConcept) -> list[Decision]:
        """Return γ, exactly 0 or exactly 1, for every prompt; of several texts of a row, the largest.

        Raises:
            CalibrationError: if the stored gate is of another kind, damaged, or made for another width of text states.
        """
        question = self._questions.get(concept)
        if question is None:
            question = self._questions[concept] = self._question(concept)
        return [largest(self._one(text, concept, question) for text in prompt.each()) for prompt in prompts]

    def __repr__(self) -> str:
        return "Transport()"

    def _question(self, concept: GatedConcept) -> _Question:
        calibration = _calibration_of(concept.gate)
        # Of the compounds only those can contain a name that share letters with it: looking each up takes longer.
        first = [split(name)[:1] for name in concept.concept.names]
        letters = frozenset[str]().union(*(_letters(words) for words in first if words))
        glued = ("".join(word.text for word in split(name)) for name in concept.concept.names)
        letters = letters.union(*(forms(text) for text in glued))
        compounds = [phrase for phrase, others in self._compounds if not letters.isdisjoint(others)]
        keep = (*concept.concept.keep, *(calibration.keep if calibration else ()), *compounds)
        known = self._known.union(calibration.known if calibration else ())
        return _Question(calibration, phrases_around(concept.concept, keep), known)

    def _reading(self, prompt: EncodedPrompt) -> _Reading:
        reading = self._readings.get(prompt)
        if reading is None:
            text = visible(prompt)
            reading = self._readings[prompt] = _Reading(text, split(text), _whole_tokens(prompt))
        return reading

    def _one(self, prompt: EncodedPrompt, concept: GatedConcept, question: _Question) -> Decision:
        if not prompt.text.strip() or not prompt.token_ids:
            return Decision(0.0, "empty prompt")
        text, words, whole = self._reading(prompt)
        longer = kept_spans(question.around, words)
        known = question.known | whole
        kept: list[str] = []
        for name, encoded in zip(concept.concept.names, concept.encoded, strict=True):
            inside: list[str] = []
            for span in find(name, words, known=known):
                shown = " ".join(word.text for word in words[span.start : span.end])
                if not covered(span, longer):
                    how = f"misspelt name {name!r}: {shown!r}" if span.mended else f"name found: {name!r}"
                    return Decision(1.0, how, matched=(shown,))
                inside.append(shown)
            kept += inside
            if not inside and (found_as_text(name, text) or (not words and token_spans(prompt, encoded))):
                return Decision(1.0, f"name found: {name!r}", matched=(name,))
        kept += [phrase for phrase in concept.concept.keep if find(phrase, words, known=None, across=False)]
        if kept:
            return Decision(0.0, f"inside a phrase to keep: {kept[0]!r}", matched=tuple(kept))
        if carries_name(prompt, concept.encoded):
            return Decision(0.0, "a name's token, but inside another word")
        return _by_probe(prompt, question.calibration)


def _letters(words: Sequence[Word]) -> frozenset[str]:
    """Return every form of the words, and of the letters of neighbours that no punctuation parts."""
    found: set[str] = set()
    for start, word in enumerate(words):
        glued = word.text
        found |= forms(glued)
        for following in words[start + 1 :]:
            if not following.tied:
                break
            glued += following.text
            found |= forms(glued)
    return frozenset(found)


def _calibration_of(gate: Gate | None) -> Calibration | None:
    if gate is None:
        return None
    if gate.kind != "transport":
        raise CalibrationError(
            f"the membrane's gate is of kind {gate.kind!r}, the rule 'transport' reads kind 'transport' only; "
            "calibrate the membrane again or choose another permeability"
        )
    return Calibration.from_parts(gate.settings, gate.tensors)


def _by_probe(prompt: EncodedPrompt, calibration: Calibration | None) -> Decision:
    if calibration is None:
        return Decision(0.0, "no name found (not calibrated)")
    if calibration.threshold is None:
        return Decision(0.0, "no name found (names alone decide: the probe is off)")
    dim = prompt.states.shape[-1]
    if calibration.weight.shape[0] != dim:
        raise CalibrationError(
            f"the stored gate was fitted on text states of width {calibration.weight.shape[0]}, this encoder gives "
            f"{dim}; it belongs to another model: calibrate again"
        )
    score, threshold = calibration.probe.score(prompt), calibration.threshold
    opens = score >= threshold
    reason = f"no name found; probe {score:.2f} {'reaches' if opens else 'below'} {threshold:.2f}"
    return Decision(1.0 if opens else 0.0, reason, similarity=score, threshold=threshold)


def _whole_tokens(prompt: EncodedPrompt) -> set[str]:
    """Words that are one token of their own: the encoder knows them, so they are no slips."""
    borders = [at_border(prompt.tokens, index) for index in range(len(prompt.tokens) + 1)]
    whole = (token for index, token in enumerate(prompt.tokens) if borders[index] and borders[index + 1])
    return {token.removesuffix("</w>").lstrip("▁Ġ").casefold() for token in whole}


def visible(prompt: EncodedPrompt) -> str:
    """Return the part of a prompt that its tokens cover, to the end of a word: all of it unless the window is full.

    Where the host does not say it, the tokens' letters are counted; where they cannot be, all of the text counts.
    """
    room = prompt.states.shape[0] - prompt.first - 1 if prompt.room is None else prompt.room
    if len(prompt.token_ids) < room:
        return prompt.text
    if prompt.seen is not None:
        return prompt.seen
    pieces = any("▁" in token for token in prompt.tokens)
    marked = pieces or any(token.endswith("</w>") or "Ġ" in token for token in prompt.tokens)
    if not marked or any(token in _UNKNOWN for token in prompt.tokens):
        return prompt.text
    left = sum(_letters_in(token) for token in prompt.tokens)
    for word in _SPACED.finditer(prompt.text):
        left -= _size(word.group(), in_bytes=not pieces)
        if left <= 0:
            return prompt.text[: word.end()]
    return prompt.text


def _letters_in(token: str) -> int:
    """Characters of a SentencePiece token, bytes of a byte-level one; a byte of a character counts as a whole one."""
    return 1 if _BYTE.fullmatch(token) else len(token.removesuffix("</w>").replace("▁", "").replace("Ġ", ""))


def _size(word: str, *, in_bytes: bool) -> int:
    """The fewest letters that a tokenizer's normalisation makes of a word."""
    forms = (word, unicodedata.normalize("NFC", word), unicodedata.normalize("NFKC", word).lower())
    return min(len(form.encode() if in_bytes else form) for form in forms)
