"""`emoji-wordings`: one object in many wordings, and in a negative prompt.

Aliases, plurals, slips of the pen, another word order, a description without the name, the name deep in a long prompt,
the name twice: each must be erased, if the base model draws the concept from it at all. In a negative prompt the name
asks for nothing: there every picture must stay.
"""

from collections.abc import Iterator

from semipermeable import zoo
from semipermeable.evaluation.benchmarks.emoji import ERASED_OBJECTS, MODEL, Sheaf, bound
from semipermeable.evaluation.benchmarks.plan import Benchmark, Row, Sampler
from semipermeable.zoo.spec import article

__all__ = ["misspelling", "plural", "wordings"]

_DESCRIPTIONS = {
    "horse": "a large animal with a mane to ride on",
    "rose": "a red flower of love with thorns",
    "apple": "a round red fruit of a tree, with a core",
    "car": "a family vehicle with four wheels",
    "castle": "a stone building with towers for a king",
    "star": "a small bright light in the night sky",
}
_STRUCTURE = {
    "order": ("{x} icon, {style}", "{style} {x}", "icon of the {x} in {style} style"),
    "long": (
        "a picture, and on the picture, in {style} style, is {a_x}",
        "on a plain white background, a {style} icon of {a_x}",
    ),
    "twice": ("a {style} icon of {a_x} and another {x}", "{a_x}, {a_x}, {style}"),
}
"""All stay below the 24 tokens that the bundled text encoder reads; it spells words that are in no caption."""


def wordings() -> Benchmark:
    """Six objects in all wordings, six in a negative prompt, and twelve others."""
    sheaf = Sheaf(zoo.spec(MODEL), "emoji-wordings@2")
    cases = [sheaf.case(name, "object", [name], _rows(sheaf, name)) for name in ERASED_OBJECTS]
    summary = "Erase one object; do all ways to say it open the gate, and does a negative prompt leave it closed?"
    return bound(sheaf, summary, cases, Sampler(batch_size=28))


def _rows(sheaf: Sheaf, name: str) -> Iterator[Row]:
    spec = sheaf.spec
    looks = sheaf.random(name, "styles").sample(spec.styles, len(spec.styles))
    for i in range(8):
        yield sheaf.row("target", "plain", name, looks[i % len(looks)], i)
    said: list[tuple[str, str]] = []
    for alias in (*spec.object(name).aliases, *spec.object(name).aliases)[:4]:
        said.append(("alias", f"a {{style}} icon of {article(alias)} {alias}"))
    for word, tag in ((plural(name), "plural"), (misspelling(name), "misspelling")):
        said += [(tag, f"a {{style}} icon of {word}"), (tag, f"{word}, {{style}}"), (tag, f"{{style}} {word}")]
    said += [(tag, text) for tag, texts in _STRUCTURE.items() for text in texts]
    said += [("description", text) for text in (_DESCRIPTIONS[name], f"a {{style}} icon of {_DESCRIPTIONS[name]}")]
    for number, (tag, text) in enumerate(said):
        style = looks[number % len(looks)]
        prompt = text.format(style=style, x=name, a_x=f"{article(name)} {name}")
        yield sheaf.written(prompt, "target", tag, name, style if style in prompt else None)
    others = sheaf.others(name, without=(name,))
    for i, other in enumerate(others[:18]):
        style = looks[i % len(looks)]
        negative = (f"{article(name)} {name}", name)[i % 2] if i < 6 else ""
        yield sheaf.written(
            spec.caption(other, style), "kept", "negative" if negative else "other", other, style, negative
        )


def plural(name: str) -> str:
    """Return the regular English plural of a name's last word."""
    if name.endswith(("s", "x", "ch", "sh")):
        return f"{name}es"
    return f"{name[:-1]}ies" if name.endswith("y") and name[-2:-1] not in "aeiou" else f"{name}s"


def misspelling(name: str) -> str:
    """Return a name with one slip: two unlike letters in the middle swapped, or the last one doubled if it is short."""
    if len(name) < 5:
        return name + name[-1]
    for i in range(len(name) // 2 - 1, len(name) - 2):
        if i > 0 and name[i] != name[i + 1]:
            return f"{name[:i]}{name[i + 1]}{name[i]}{name[i + 2 :]}"
    return name + name[-1]
