"""The default permeability: 1 on the concept and its aliases in any wording, exactly 0 elsewhere.

A prompt opens if one of the concept's names stands in it, by tokens or by words (`words.find`), outside every longer
phrase to keep: "cat face" is not "cat". Where no name stands in it, a fitted probe on the text encoder's states
decides; without a calibration the names alone do. The empty prompt is always closed. γ is 0 or 1, nothing between: a
half-open membrane draws half-erased things and moves pictures it should leave alone.

Only what the denoiser can see counts: where a prompt fills the encoder's window, words beyond it are not looked at.
"""

from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

from semipermeable.errors import CalibrationError
from semipermeable.permeability.calibration import Calibration
from semipermeable.permeability.decisions import Decision, EncodedPrompt, Gate, GatedConcept
from semipermeable.permeability.probe import at_border, carries_name, token_spans
from semipermeable.permeability.prompts import covered, kept_spans, phrases_around
from semipermeable.permeability.vocabulary import COMPOUNDS, known_words
from semipermeable.permeability.words import Word, find, forms, found_as_text, split

__all__ = ["Transport", "visible"]


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
        """Return γ, exactly 0 or exactly 1, for every prompt.

        Raises:
            CalibrationError: if the stored gate is of another kind, damaged, or made for another width of text states.
        """
        question = self._questions.get(concept)
        if question is None:
            question = self._questions[concept] = self._question(concept)
        return [self._one(prompt, concept, question) for prompt in prompts]

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
            for span in find(name, words, known=known):
                shown = " ".join(word.text for word in words[span.start : span.end])
                if not covered(span, longer):
                    how = f"misspelt name {name!r}: {shown!r}" if span.mended else f"name found: {name!r}"
                    return Decision(1.0, how, matched=(shown,))
                kept.append(shown)
            if not kept and (found_as_text(name, text) or (not words and token_spans(prompt, encoded))):
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
    """Return the part of a prompt that its tokens cover, to the end of a word: all of it unless the window is full."""
    room = prompt.states.shape[0] - prompt.first - 1 if prompt.room is None else prompt.room
    if len(prompt.token_ids) < room:
        return prompt.text
    left = sum(len(token.removesuffix("</w>").replace("▁", "").replace("Ġ", "")) for token in prompt.tokens)
    for index, character in enumerate(prompt.text):
        if character.isspace():
            if left <= 0:
                return prompt.text[:index]
            continue
        left -= len(character.encode())
    return prompt.text
