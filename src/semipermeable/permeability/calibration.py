"""Fitting a gate to one concept and one text encoder, and the frozen result.

Negatives are dealt into folds by subject, several times over, and every fold's probe is fitted without its subjects and
without its templates. So each negative is scored by a probe that never saw its subject, each positive by one that never
saw its template. The threshold lies above every such held-out negative, and above every negative for the probe that is
stored (fitted on everything), by a margin. A probe that would then open less than half of the held-out positives is
off, and the names alone decide: where it cannot find the names it was fitted on, what it finds elsewhere is chance.

Negatives that contain a name's last token ("cat face" beside "cat", "dande|lion" beside "lion") are left to the names
and the phrases to keep: in a causal text encoder the token "cat" has one state before whatever follows, so no probe
could tell them apart there. The rule never asks the probe about such prompts either. It does ask about prompts with no
more than the ending of a name's plural, which many a small vocabulary has as a token of its own: those are negatives.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeAlias

import torch
from torch import Tensor

from semipermeable.concept import Concept
from semipermeable.errors import CalibrationError
from semipermeable.permeability.decisions import EncodedPrompt, Json
from semipermeable.permeability.probe import Probe, carries_name, fit_probe
from semipermeable.permeability.prompts import Example, means, phrases_around, plural
from semipermeable.permeability.vocabulary import COMPOUNDS
from semipermeable.permeability.words import forms, is_slip, split

__all__ = ["Calibration", "Encode", "fit"]

Encode: TypeAlias = Callable[[Sequence[str]], Sequence[EncodedPrompt]]

_VERSION = 1
_FOLDS = 3
_DEALS = 3
"""How often folds are dealt afresh, so that the threshold hangs less on one deal."""
_MARGIN = 0.5
"""Part of the way from the highest held-out negative to the median held-out positive."""
_MIN_MARGIN = 2.0
"""Least distance above the highest held-out negative, in log-odds; see docs/gate.md for what the margins give."""
_MIN_OPEN_RATE = 0.5
"""Share of held-out positives that a probe must open to be asked at all."""
_MIN_EACH = 6
_BATCH = 64


@dataclass(frozen=True, eq=False, kw_only=True)
class Calibration:
    """A gate fitted to one concept on one text encoder.

    Args:
        weight: w of the probe, shape (dim,), fp32.
        bias: b of the probe.
        threshold: the probe opens at or above it; None: it would open less than half of the held-out positives, and
            is off.
        keep: phrases that contain a name and mean something else.
        known: words that look like a misspelt name but are words.
        encoder_hash: SHA-256 of the text encoder's weights.
        num_positives: number of prompts about the concept.
        num_negatives: number of prompts about other things.
        held_out_open_rate: share of positives that their held-out probe opens at the threshold, in [0, 1].
        held_out_false_open_rate: the same of negatives; 0 by construction.

    Raises:
        CalibrationError: if a field is of the wrong type, not finite, or out of range.
    """

    weight: Tensor
    bias: float
    threshold: float | None
    keep: tuple[str, ...]
    known: tuple[str, ...]
    encoder_hash: str
    num_positives: int
    num_negatives: int
    held_out_open_rate: float
    held_out_false_open_rate: float

    def __post_init__(self) -> None:
        if self.weight.dim() != 1 or not self.weight.is_floating_point() or not bool(torch.isfinite(self.weight).all()):
            raise CalibrationError(
                f"gate tensor 'weight' must be finite floating point of shape (dim,), found {self.weight.dtype} "
                f"of shape {tuple(self.weight.shape)}; fit the gate again"
            )
        object.__setattr__(self, "weight", self.weight.detach().to("cpu", torch.float32).clone())

    @property
    def probe(self) -> Probe:
        """The linear probe."""
        return Probe(self.weight.double(), self.bias)

    def to_parts(self) -> tuple[dict[str, Json], dict[str, Tensor]]:
        """Return settings (JSON data) and tensors, to be stored with a membrane under the kind "transport"."""
        settings: dict[str, Json] = {
            "version": _VERSION,
            "bias": self.bias,
            "threshold": self.threshold,
            "keep": list(self.keep),
            "known": list(self.known),
            "encoder_hash": self.encoder_hash,
            "num_positives": self.num_positives,
            "num_negatives": self.num_negatives,
            "held_out_open_rate": self.held_out_open_rate,
            "held_out_false_open_rate": self.held_out_false_open_rate,
        }
        return settings, {"weight": self.weight.clone()}

    @classmethod
    def from_parts(cls, settings: Mapping[str, Json], tensors: Mapping[str, Tensor]) -> "Calibration":
        """Read what `to_parts` wrote.

        Raises:
            CalibrationError: if the version is not known, or a key is missing, of the wrong type or not known.
        """
        if settings.get("version") != _VERSION:
            raise CalibrationError(
                f"gate setting 'version' is {settings.get('version')!r}, this package reads {_VERSION}; fit it again"
            )
        expected = {field for field in cls.__dataclass_fields__ if field != "weight"} | {"version"}
        odd = sorted(expected ^ set(settings))
        if odd or set(tensors) != {"weight"}:
            what = f"setting {odd[0]!r}" if odd else f"tensors {sorted(tensors)}, expected ['weight']:"
            raise CalibrationError(f"gate {what} is missing or not known; fit the gate again")
        threshold = settings["threshold"]
        return cls(
            weight=tensors["weight"],
            bias=_number(settings, "bias"),
            threshold=None if threshold is None else _number(settings, "threshold"),
            keep=_texts(settings, "keep"),
            known=_texts(settings, "known"),
            encoder_hash=_text(settings, "encoder_hash"),
            num_positives=_count(settings, "num_positives"),
            num_negatives=_count(settings, "num_negatives"),
            held_out_open_rate=_rate(settings, "held_out_open_rate"),
            held_out_false_open_rate=_rate(settings, "held_out_false_open_rate"),
        )


def _wrong(key: str, value: object, expected: str) -> CalibrationError:
    return CalibrationError(f"gate setting {key!r} must be {expected}, found {value!r}; fit the gate again")


def _number(settings: Mapping[str, Json], key: str) -> float:
    value = settings[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _wrong(key, value, "a finite number")
    return float(value)


def _rate(settings: Mapping[str, Json], key: str) -> float:
    value = _number(settings, key)
    if not 0.0 <= value <= 1.0:
        raise _wrong(key, value, "a number in [0, 1]")
    return value


def _count(settings: Mapping[str, Json], key: str) -> int:
    value = settings[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _wrong(key, value, "a whole number, at least 0")
    return value


def _text(settings: Mapping[str, Json], key: str) -> str:
    value = settings[key]
    if not isinstance(value, str):
        raise _wrong(key, value, "text")
    return value


def _texts(settings: Mapping[str, Json], key: str) -> tuple[str, ...]:
    value = settings[key]
    if not isinstance(value, list):
        raise _wrong(key, value, "a list of texts")
    texts = tuple(entry for entry in value if isinstance(entry, str))
    if len(texts) != len(value):
        raise _wrong(key, value, "a list of texts")
    return texts


def fit(
    concept: Concept,
    encode: Encode,
    *,
    positives: Sequence[Example],
    negatives: Sequence[Example],
    encoder_hash: str,
    generator: torch.Generator,
) -> Calibration:
    """Fit the gate of one concept.

    Args:
        concept: what the gate opens for.
        encode: the text encoder, e.g. `host.encode`.
        positives: prompts about the concept, e.g. `prompts.wordings(concept)`.
        negatives: prompts about other things, e.g. `prompts.negatives(concept, vocabulary)`.
        encoder_hash: SHA-256 of the text encoder's weights.
        generator: CPU generator that deals subjects and templates into folds.

    Raises:
        CalibrationError: if a side has too few prompts, subjects or templates, or a negative means the concept.
    """
    keep = _phrases_to_keep(concept, negatives)
    _check(concept, positives, negatives, keep)
    singular = list(encode(list(concept.names)))
    names = [*singular, *encode([form for name in concept.names if (form := plural(name)) != name])]
    opens = _encode(encode, positives)
    encoded = zip(negatives, _encode(encode, negatives), strict=True)
    pairs = [(e, p) for e, p in encoded if not carries_name(p, singular)]
    apart, others = [e for e, _ in pairs], [p for _, p in pairs]
    if not apart:
        raise CalibrationError(f"every negative contains a token of {concept.name!r}; pass prompts about other things")
    high: list[float] = []
    low: list[float] = []
    for _ in range(_DEALS):
        opened_scores, closed_scores = _held_out_scores(positives, opens, apart, others, names, generator)
        high.extend(opened_scores)
        low.extend(closed_scores)
        # The probe that is stored can only raise the threshold of these scores: one that falls short now is off.
        if _opened(high, _threshold(high, max(low))) < _MIN_OPEN_RATE:
            break
    probe = fit_probe(opens, others, names)
    if probe is None:
        raise CalibrationError(
            f"no positive contains the tokens of {' or '.join(map(repr, concept.names))}; prompts.wordings writes some"
        )
    ceiling = max(*low, *(probe.score(prompt) for prompt in others))
    threshold = _threshold(high, ceiling)
    open_rate = _opened(high, threshold)
    return Calibration(
        weight=probe.weight,
        bias=probe.bias,
        threshold=threshold if open_rate >= _MIN_OPEN_RATE else None,
        keep=keep,
        known=_known(concept, negatives),
        encoder_hash=encoder_hash,
        num_positives=len(positives),
        num_negatives=len(negatives),
        held_out_open_rate=open_rate,
        held_out_false_open_rate=_opened(low, threshold),
    )


def _threshold(positive: Sequence[float], ceiling: float) -> float:
    """Return a threshold above the highest negative score; it rises with that score."""
    return ceiling + max(_MIN_MARGIN, _MARGIN * (median(positive) - ceiling))


def _opened(scores: Sequence[float], threshold: float) -> float:
    """Return the share of scores that reach a threshold."""
    return sum(score >= threshold for score in scores) / len(scores)


def _encode(encode: Encode, examples: Sequence[Example]) -> list[EncodedPrompt]:
    texts = [example.text for example in examples]
    return [row for start in range(0, len(texts), _BATCH) for row in encode(texts[start : start + _BATCH])]


def _phrases_to_keep(concept: Concept, negatives: Sequence[Example]) -> tuple[str, ...]:
    """Subjects of negatives that contain a name: "cat face" beside "cat"."""
    subjects = dict.fromkeys(example.subject for example in negatives if example.subject != example.text)
    subjects.update(dict.fromkeys(e.subject for e in negatives if e.subject == e.text and e.template != e.text))
    return tuple(sorted(phrases_around(concept, list(subjects))))


def _known(concept: Concept, negatives: Sequence[Example]) -> tuple[str, ...]:
    """Words of the negatives that a misspelt name could be taken for."""
    targets = {word.text for name in concept.names for word in split(name)}
    words = {word.text for example in negatives for word in split(example.text)}
    return tuple(sorted(w for w in words if any(is_slip(form, target) for form in forms(w) for target in targets)))


def _check(concept: Concept, positives: Sequence[Example], negatives: Sequence[Example], keep: Sequence[str]) -> None:
    for side, examples in (("positives", positives), ("negatives", negatives)):
        templates = {example.template for example in examples}
        if len(examples) < _MIN_EACH or len(templates) < _FOLDS:
            raise CalibrationError(
                f"calibrating {concept.name!r} takes at least {_MIN_EACH} {side} of {_FOLDS} templates, found "
                f"{len(examples)} of {len(templates)}; prompts.wordings and prompts.negatives write them"
            )
    named = phrases_around(concept, (*keep, *concept.keep, *COMPOUNDS))
    for example in negatives:
        if means(concept, example.text, named):
            raise CalibrationError(
                f"the negative {example.text!r} names the concept {concept.name!r}; remove it or name what it shows in "
                "the concept's `keep`"
            )


def _deal(keys: Sequence[str], generator: torch.Generator) -> dict[str, int]:
    """Deal distinct keys into folds at random."""
    distinct = sorted(set(keys))
    order = torch.randperm(len(distinct), generator=generator).tolist()
    return {distinct[index]: place % _FOLDS for place, index in enumerate(order)}


def _held_out_scores(
    positives: Sequence[Example],
    opens: Sequence[EncodedPrompt],
    negatives: Sequence[Example],
    others: Sequence[EncodedPrompt],
    names: Sequence[EncodedPrompt],
    generator: torch.Generator,
) -> tuple[list[float], list[float]]:
    """Score positives by a probe blind to their template, negatives blind to their subject."""
    template = _deal([example.template for example in (*positives, *negatives)], generator)
    subject = _deal([example.subject for example in negatives], generator)
    high: list[float] = []
    low: list[float] = []
    for fold in range(_FOLDS):
        seen = [p for e, p in zip(positives, opens, strict=True) if template[e.template] != fold]
        apart = [
            p
            for e, p in zip(negatives, others, strict=True)
            if subject[e.subject] != fold and template[e.template] != fold
        ]
        probe = fit_probe(seen, apart, names) if seen and apart else None
        if probe is None:
            continue
        high.extend(probe.score(p) for e, p in zip(positives, opens, strict=True) if template[e.template] == fold)
        low.extend(probe.score(p) for e, p in zip(negatives, others, strict=True) if subject[e.subject] == fold)
    if not high or not low:
        raise CalibrationError("too few templates to hold some out; pass positives and negatives of more templates")
    return high, low
