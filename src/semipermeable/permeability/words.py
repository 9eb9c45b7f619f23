"""Finding a name in a prompt by its words, whatever the case, punctuation, number, hyphens or slips of the finger.

A text becomes words: compatibility-normalised, case-folded, without accents, possessive 's and punctuation. A phrase
is found where its words stand next to each other; plural and singular are the same, so are "ice cream", "ice-cream"
and "icecream", and so is a word with one slip, provided that the slip did not make another known word. Names written
without spaces between words (Chinese, emoji) are looked for as plain text.
"""

import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

__all__ = ["Span", "Word", "find", "forms", "found_as_text", "is_slip", "split"]

_WORD = re.compile(r"[^\W_]+")
_POSSESSIVE = re.compile(r"(?<=\w)'s\b")
_JOINERS = re.compile(r"[\s\-_'’‐‑]*")
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\u0e00-\u0e7f]")
_IRREGULAR = {
    "mice": "mouse", "geese": "goose", "feet": "foot", "teeth": "tooth", "men": "man", "women": "woman",
    "children": "child", "people": "person", "oxen": "ox", "cacti": "cactus", "octopi": "octopus", "fungi": "fungus",
    "dice": "die", "lice": "louse",
}  # fmt: skip
_SHORT = 5
"""Words shorter than this have too many neighbours: only a swap or a doubled letter counts as a slip."""

_LONGEST_ENDING = 3
"""No plural has more letters than this beyond its singular ("children")."""


@dataclass(frozen=True, slots=True)
class Word:
    """One word of a text.

    Args:
        text: normalised.
        tied: whether only spaces, hyphens or apostrophes lie between it and the word before.
        hyphened: whether no space lies there either.
    """

    text: str
    tied: bool
    hyphened: bool


@dataclass(frozen=True, slots=True)
class Span:
    """Where a phrase was found: words [start, end), and whether only after mending a slip."""

    start: int
    end: int
    mended: bool = False


def _fold(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).casefold()
    marks_off = "".join(c for c in plain if unicodedata.category(c) != "Mn")
    return marks_off.replace("’", "'").replace("ʼ", "'")


def split(text: str) -> list[Word]:
    """Return the words of a text, normalised."""
    return list(_split(text))


@lru_cache(maxsize=1 << 12)
def _split(text: str) -> tuple[Word, ...]:
    """Remembered, since an index and the rule read the same prompts, and every concept asks about the same phrases."""
    folded = _POSSESSIVE.sub("", _fold(text))
    words: list[Word] = []
    end = 0
    for match in _WORD.finditer(folded):
        gap = folded[end : match.start()]
        tied = bool(words) and _JOINERS.fullmatch(gap) is not None
        words.append(Word(match.group(), tied, tied and not any(c.isspace() for c in gap)))
        end = match.end()
    return tuple(words)


@lru_cache(maxsize=1 << 15)
def forms(word: str) -> frozenset[str]:
    """Return the word and the singulars it may be the plural of, e.g. {"cherries", "cherry"}."""
    found = {word}
    if word in _IRREGULAR:
        found.add(_IRREGULAR[word])
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        found.add(word[:-1])
        if word.endswith(("ses", "xes", "zes", "ches", "shes", "oes")):
            found.add(word[:-2])
        if word.endswith("ies") and len(word) > 4:
            found.add(word[:-3] + "y")
        if word.endswith("ves"):
            found.update((word[:-3] + "f", word[:-3] + "fe"))
    return frozenset(found)


def is_slip(word: str, name: str) -> bool:
    """Whether `word` is `name` with one slip of the finger.

    Two neighbouring letters swapped, or a letter doubled or undoubled; from five letters on also one letter missing,
    added or replaced, but not the first, which people seldom get wrong.
    """
    if word == name or len(name) < 3 or not word.isalpha() or not name.isalpha() or abs(len(word) - len(name)) > 1:
        return False
    start = 0
    while start < min(len(word), len(name)) and word[start] == name[start]:
        start += 1
    if len(word) == len(name):
        swapped = name[:start] + name[start : start + 2][::-1] + name[start + 2 :]
        replaced = start > 0 and len(name) >= _SHORT and word[start + 1 :] == name[start + 1 :]
        return word == swapped or replaced
    longer, shorter = (word, name) if len(word) > len(name) else (name, word)
    if longer[:start] + longer[start + 1 :] != shorter or start == 0:
        return False
    return longer[start] == longer[start - 1] or len(name) >= _SHORT


def _mends(word: str, name: str, known: Collection[str]) -> bool:
    candidates = forms(word)
    if any(candidate in known for candidate in candidates):
        return False
    return any(is_slip(candidate, name) for candidate in candidates)


def _same(word: str, name: str) -> bool:
    return word == name or not forms(word).isdisjoint(forms(name))


def find(phrase: str, words: Sequence[Word], *, known: Collection[str] | None, across: bool = True) -> list[Span]:
    """Return every place where a phrase stands, in order.

    Args:
        phrase: e.g. "cat face".
        words: of the prompt.
        known: words that are never taken for a slip; None mends no slip at all.
        across: whether punctuation may stand between the phrase's words.
    """
    wanted, joined = _letters_of(phrase)
    spans: list[Span] = []
    if not wanted:
        return spans
    # A plural begins like its singular, and the one slip that changes how a word begins swaps its first two letters.
    begins = wanted[0][:2]
    for start, first in enumerate(words):
        if first.text[0] not in begins:
            continue
        for length in range(1, len(wanted) + 3):
            window = words[start : start + length]
            if len(window) < length or not (across or all(word.tied for word in window[1:])):
                break
            if length == len(wanted):
                misses = [(w.text, n) for w, n in zip(window, wanted, strict=True) if not _same(w.text, n)]
                if not misses:
                    spans.append(Span(start, start + length))
                elif known is not None and len(misses) == 1 and _mends(*misses[0], known):
                    spans.append(Span(start, start + length, mended=True))
            elif _joins(window, joined):
                spans.append(Span(start, start + length))
    return spans


@lru_cache(maxsize=1 << 15)
def _letters_of(phrase: str) -> tuple[tuple[str, ...], str]:
    """Return a phrase's words, and all their letters: a bank asks about the same phrases in every prompt."""
    wanted = tuple(word.text for word in split(phrase))
    return wanted, "".join(wanted)


def _joins(window: Sequence[Word], joined: str) -> bool:
    """Whether a window of another number of words spells the same letters: "icecream", "sun-flower"."""
    letters = "".join([word.text for word in window])
    if abs(len(letters) - len(joined)) > _LONGEST_ENDING:
        return False
    glued = all(word.hyphened for word in window[1:])
    if not (glued or (len(joined) >= _SHORT and all(word.tied for word in window[1:]))):
        return False
    return _same(letters, joined)


def found_as_text(name: str, text: str) -> bool:
    """Whether a name without words, or of a script without spaces, stands in a text."""
    folded = _fold(name).strip()
    unspaced = _UNSPACED.search(unicodedata.normalize("NFKC", name)) is not None or not _WORD.search(folded)
    return bool(folded) and unspaced and folded in _fold(text)
