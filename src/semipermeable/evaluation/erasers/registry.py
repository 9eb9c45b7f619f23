"""All erasers by name.

A spec string is a name, or a name and an argument after a colon: `noop`, `sld:max`, `spm:cat.safetensors`,
`spm-open:cat.safetensors,dog.safetensors`. A third party adds an eraser as an entry point of the group
`semipermeable.erasers`: its name, and an object of class `Registration`. Names of this package cannot be taken over.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Literal

from semipermeable.errors import ConfigError, UnknownNameError, closest
from semipermeable.evaluation.erasers import (
    concept_ablation,
    esd,
    leco,
    mace,
    negative_prompt,
    noop,
    prompt_substitution,
    rece,
    sld,
    speed,
    spm,
    spm_reference,
    uce,
)
from semipermeable.evaluation.erasers.protocol import Card, Eraser
from semipermeable.training import TrainConfig

__all__ = ["GROUP", "Registration", "card", "card_table", "eraser", "names"]

GROUP = "semipermeable.erasers"


@dataclass(frozen=True, kw_only=True, slots=True)
class Registration:
    """How an eraser is made, and its card."""

    make: Callable[[str], Eraser]
    """Given the text after the colon ("" without one), returns the eraser; refuses it with an UnknownNameError."""
    card: Card
    """What a reader must know."""
    argument: str = ""
    """What may follow the colon, for help texts; "" if nothing."""


def _plain(name: str, make: Callable[[], Eraser], card: Card) -> tuple[str, Registration]:
    def made(argument: str) -> Eraser:
        if argument:
            raise UnknownNameError(f"eraser {name!r} takes nothing after its name, found {argument!r}; write {name!r}")
        return make()

    return name, Registration(make=made, card=card)


def _sld(name: str, shown: Card, *, gated: bool) -> tuple[str, Registration]:
    def made(argument: str) -> Eraser:
        for strength, settings in sld.STRENGTHS.items():
            if argument == strength:
                return sld.Sld(f"{name}:{strength}", settings, gated)
        raise UnknownNameError(closest(argument, sld.STRENGTHS, what=f"strength of the eraser {name!r}"))

    return name, Registration(make=made, card=shown, argument=" | ".join(sld.STRENGTHS))


def _membranes(name: str, make: Callable[[tuple[str, ...]], Eraser], card: Card) -> tuple[str, Registration]:
    def made(argument: str) -> Eraser:
        files = tuple(part.strip() for part in argument.split(",")) if argument else ()
        wrong = [file for file in files if not file.endswith(".safetensors")]
        if wrong:
            raise UnknownNameError(f"after {name!r} come membrane files (.safetensors), found {wrong[0]!r}")
        return make(files)

    return name, Registration(make=made, card=card, argument="FILE.safetensors[,…]")


def _spm(name: str, rule: spm.Rule, preset: Literal["fast", "paper"], files: tuple[str, ...]) -> Eraser:
    return spm.Spm(name, rule, TrainConfig.from_preset(preset), files)


def _in_tree() -> dict[str, Registration]:
    return dict(
        [
            _plain("noop", noop.Noop, noop.CARD),
            _plain("negative-prompt", negative_prompt.NegativePrompt, negative_prompt.CARD),
            _sld("sld", sld.CARD, gated=False),
            _plain("esd-x", partial(esd.Esd, "x"), esd.CARD),
            _plain("esd-u", partial(esd.Esd, "u"), esd.CARD),
            _plain("concept-ablation", concept_ablation.ConceptAblation, concept_ablation.CARD),
            _plain("leco", leco.Leco, leco.CARD),
            _plain("uce", uce.Uce, uce.CARD),
            _plain("rece", rece.Rece, rece.CARD),
            _plain("mace-closed-form", mace.MaceClosedForm, mace.CARD),
            _plain("speed", speed.Speed, speed.CARD),
            _membranes("spm-open", partial(_spm, "spm-open", "open", "fast"), spm.OPEN_CARD),
            _plain("prompt-substitution", prompt_substitution.PromptSubstitution, prompt_substitution.CARD),
            _plain(
                "gated-negative-prompt",
                partial(negative_prompt.NegativePrompt, gated=True),
                negative_prompt.GATED_CARD,
            ),
            _sld("gated-sld", sld.GATED_CARD, gated=True),
            _plain("gated-uce", uce.GatedUce, uce.GATED_CARD),
            _membranes("spm-reference", lambda files: spm_reference.SpmReference(files=files), spm_reference.CARD),
            _membranes("spm-paper", partial(_spm, "spm-paper", "paper", "paper"), spm.PAPER_CARD),
            _membranes("spm", partial(_spm, "spm", "transport", "fast"), spm.CARD),
        ]
    )


def names() -> tuple[str, ...]:
    """Return the names of all erasers: those of this package in a fixed order, then those of others, sorted."""
    own = _in_tree()
    return (*own, *sorted({point.name for point in _third_parties()} - set(own)))


def _third_parties() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=GROUP))


def _find(name: str) -> Registration:
    own = _in_tree()
    if name in own:
        return own[name]
    points = [point for point in _third_parties() if point.name == name]
    if not points:
        raise UnknownNameError(closest(name, names(), what="eraser"))
    found = points[0].load()
    if not isinstance(found, Registration):
        raise ConfigError(
            f"entry point {name!r} of group {GROUP!r} is a {type(found).__name__}; expected a Registration of "
            "semipermeable.evaluation.erasers. Update or remove the package that brings it."
        )
    return found


def eraser(spec: str) -> Eraser:
    """Return the eraser that a spec string means.

    Args:
        spec: a name, or "name:argument".

    Raises:
        UnknownNameError: if the name is unknown or the argument is not one it takes; close ones are suggested.
        ConfigError: if a third party's entry point is not a `Registration`.
    """
    name, _, argument = spec.strip().partition(":")
    return _find(name).make(argument.strip())


def card(name: str) -> Card:
    """Return the card of an eraser.

    Args:
        name: its name; what follows a colon is not looked at.

    Raises:
        UnknownNameError: if it is unknown.
    """
    return _find(name.strip().partition(":")[0]).card


def card_table() -> str:
    """Return the cards of this package's erasers as a Markdown table; docs/evaluation.md holds it."""
    lines = ["| eraser | source | settings | tuned |", "| --- | --- | --- | --- |"]
    for name, found in _in_tree().items():
        argument = f":{found.argument.replace('|', '/')}" if found.argument else ""
        shown = found.card
        lines.append(f"| `{name}{argument}` | {shown.paper} | {shown.defaults} | {shown.tuned} |")
    return "\n".join(lines)
