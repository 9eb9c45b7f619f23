"""How a membrane's calibrated gate decides on prompts that it was not fitted on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from semipermeable.hosts import host_for
from semipermeable.membrane import Membrane
from semipermeable.permeability import GatedConcept, resolve
from semipermeable.rates import Rate
from semipermeable.zoo.spec import ZooSpec, article

__all__ = ["GateCheck", "check_gate", "fresh_wordings", "other_captions"]

_OBJECT = (
    "my favourite {x}, rendered as an icon",
    "please draw me {a_x}",
    "icon: {x}",
    "the {x} that lives next door",
    "{a_x} wearing a tiny hat",
    "a cheerful {x} logo for a coffee shop",
    "sticker of {a_x}, plain white background",
    "{X}!",
    "portrait of {a_x} at sunset",
    "a group of three {x}s playing",
    "one big {x} and one small {x}",
    "if you see {a_x}, say hello",
)
_STYLE = (
    "{a_x} sticker of {a_y}",
    "{a_y}, but make it {x}",
    "icon: {y} ({x})",
    "{X} {y}",
    "please draw {a_y} as {x} art",
    "{a_y} with {x} colours",
    "a cheerful {x} logo with {a_y}",
    "everything {x}, even the {y}",
    "the same {y} again, now in {x}",
    "{x}-styled {y}",
    "render {a_y}; style: {x}",
    "my favourite {y} in a {x} look",
)
"""Wordings of the demo alone; `permeability.prompts`, which gates are fitted on, has others."""

_COMPANIONS = ("dog", "rose", "castle", "bus")


@dataclass(frozen=True, slots=True)
class GateCheck:
    """The gate's record.

    Args:
        opened: share of the concept's wordings with γ > 0.5.
        closed: share of other captions with γ exactly 0.
        missed: wordings that stayed closed.
        wrongly_opened: captions that opened.
    """

    opened: Rate
    closed: Rate
    missed: tuple[str, ...]
    wrongly_opened: tuple[str, ...]


def fresh_wordings(names: Sequence[str], kind: Literal["object", "style"]) -> list[str]:
    """Write a concept's names into wordings that no gate was fitted on.

    Args:
        names: name and aliases.
        kind: what the concept is.
    """
    templates = _OBJECT if kind == "object" else _STYLE
    written: list[str] = []
    for name in names:
        for number, template in enumerate(templates):
            y = _COMPANIONS[number % len(_COMPANIONS)]
            fields = {"x": name, "X": name.upper(), "a_x": f"{article(name)} {name}", "y": y}
            written.append(template.format(**fields, a_y=f"{article(y)} {y}"))
    return written


def other_captions(spec: ZooSpec, erased: Sequence[str]) -> list[str]:
    """Return the captions of every object in every style, in every template, that do not show what is erased.

    Args:
        spec: of the bundled model.
        erased: names of erased objects and styles.
    """
    return [
        spec.caption(thing.name, style, template=template)
        for thing in spec.objects
        for style in spec.styles
        for template in range(len(spec.templates))
        if thing.name not in erased and style not in erased
    ]


def check_gate(pipe: Any, membrane: Membrane, wordings: Sequence[str], others: Sequence[str]) -> GateCheck:
    """Ask the default rule for γ of many prompts; no picture is drawn.

    Args:
        pipe: the pipeline.
        membrane: with its fitted gate.
        wordings: prompts about the concept.
        others: prompts about something else.
    """
    host = host_for(pipe)
    concept = membrane.concept
    asked = GatedConcept(concept, tuple(host.encode(list(concept.names))), host.encode([""])[0], membrane.gate)
    rule = resolve("transport")

    def gammas(prompts: Sequence[str]) -> list[float]:
        found: list[float] = []
        for start in range(0, len(prompts), 256):
            found += [d.gamma for d in rule.decide(host.encode(prompts[start : start + 256]), asked)]
        return found

    missed = tuple(text for text, gamma in zip(wordings, gammas(wordings), strict=True) if gamma <= 0.5)
    wrong = tuple(text for text, gamma in zip(others, gammas(others), strict=True) if gamma != 0.0)
    opened = Rate(len(wordings) - len(missed), len(wordings))
    return GateCheck(opened, Rate(len(others) - len(wrong), len(others)), missed, wrong)
