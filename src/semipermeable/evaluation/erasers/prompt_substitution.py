"""The gate without any membrane: where a prompt asks for the concept, its words are replaced by the surrogate.

"a neon icon of two cats" becomes "a neon icon of two animals", and the base model draws that. Where the gate opens
although no name stands in the prompt, there is nothing to replace and the surrogate alone is drawn. With an empty
surrogate the name is dropped.
"""

import re
import unicodedata
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from semipermeable.concept import Concept
from semipermeable.evaluation.erasers.gates import PromptGate, as_list, fit_gates
from semipermeable.evaluation.erasers.protocol import Card, Draw
from semipermeable.evaluation.erasers.subjects import configuration, subjects_of
from semipermeable.membrane import Json
from semipermeable.permeability.prompts import covered, kept_spans, phrases_around, plural
from semipermeable.permeability.vocabulary import COMPOUNDS, known_words
from semipermeable.permeability.words import Span, find, forms, split
from semipermeable.zoo.spec import article

__all__ = ["CARD", "PromptSubstitution", "substituted"]

CARD = Card(
    paper="none",
    defaults="the concept's words become its surrogate where the calibrated gate of this package opens",
    tuned="nothing; the gate is fitted per concept as for a membrane",
)
_WORD = re.compile(r"([^\W_]+)(?:['’ʼ]s\b)?")


def substituted(prompt: str, concept: Concept) -> str:
    """Return a prompt with every name of the concept replaced by its surrogate, articles and number made to fit.

    Args:
        prompt: the text.
        concept: its names are replaced outside its phrases to keep; where none is found the surrogate alone is left.
    """
    text = unicodedata.normalize("NFKC", prompt)
    places, words = list(_WORD.finditer(text)), split(text)
    if len(places) != len(words):
        return concept.surrogate
    spans = _spans(prompt, concept)
    if not spans:
        return concept.surrogate
    for span in reversed(spans):
        start, end = places[span.start].start(1), places[span.end - 1].end(1)
        last, name = words[span.end - 1].text, {split(name)[-1].text for name in concept.names if split(name)}
        many = last not in name and bool(forms(last) & name)
        wanted = plural(concept.surrogate) if many and concept.surrogate else concept.surrogate
        before = re.sub(r"\b(an?)(\s+)$", lambda m: _article(m, concept.surrogate), text[:start], flags=re.IGNORECASE)
        text = before + wanted + text[end:]
    return " ".join(text.split())


def _article(match: re.Match[str], surrogate: str) -> str:
    if not surrogate:
        return ""
    right = article(surrogate)
    return (right.capitalize() if match[1][0].isupper() else right) + match[2]


def _spans(prompt: str, concept: Concept) -> list[Span]:
    """Return where the names stand, in order, without overlaps, the longest first."""
    words = split(unicodedata.normalize("NFKC", prompt))
    longer = kept_spans(phrases_around(concept, (*concept.keep, *COMPOUNDS)), words)
    known = known_words()
    found = [span for name in concept.names for span in find(name, words, known=known) if not covered(span, longer)]
    chosen: list[Span] = []
    for span in sorted(found, key=lambda s: (s.start - s.end, s.start)):
        if all(span.end <= other.start or other.end <= span.start for other in chosen):
            chosen.append(span)
    return sorted(chosen, key=lambda s: s.start)


@dataclass(frozen=True, eq=False)
class _Reworded:
    """The gate; nothing else is needed."""

    config: Mapping[str, Json]
    gate: PromptGate

    @property
    def stored_bytes(self) -> int:
        return self.gate.stored_bytes

    @contextmanager
    def applied(self, pipe: Any) -> Generator[Draw, None, None]:
        """See `Erasure`."""

        def erased(prompt: str | Sequence[str], **options: Any) -> Any:
            prompts = as_list(prompt)
            texts = list(prompts)
            for row, found in enumerate(self.gate.opened(pipe, prompts)):
                for subject in found:
                    texts[row] = substituted(texts[row], subject.concept)
            return pipe(texts, **options)

        yield erased


class PromptSubstitution:
    """See the module."""

    name = "prompt-substitution"
    gated = True

    def prepare(self, pipe: Any, concepts: Sequence[Concept], *, seed: int, progress: bool = False) -> _Reworded:  # noqa: ARG002
        """See `Eraser`."""
        subjects = subjects_of(pipe, concepts)
        return _Reworded(configuration(self.name, subjects, seed), fit_gates(pipe, subjects, seed))
