"""All erasers by name.

A spec string is a name, or a name and arguments after a colon: `noop`, `sld:max`, `uce:tuned`, `esd-x:num_steps=200`,
`spm:rank=2`, `spm-open:cat.safetensors,dog.safetensors` (see `variants`), `uce:sibling` (see `siblings`). A third
party adds an eraser as an entry point of the group `semipermeable.erasers`: its name, and an object of class
`Registration`. Names of this package cannot be taken over.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Literal, TypeVar

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
from semipermeable.evaluation.erasers.reference_training import ReferenceSettings
from semipermeable.evaluation.erasers.siblings import SIBLING, TowardsSiblings
from semipermeable.evaluation.erasers.tuned import tuned_settings
from semipermeable.evaluation.erasers.variants import TUNED, read_variant
from semipermeable.membrane import Json
from semipermeable.training import TrainConfig
from semipermeable.zoo.shipped import shipped_name

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
    tuned: Mapping[str, Json] = field(default_factory=lambda: dict[str, Json]())
    """Fields of the variant "tuned"; empty where there is none."""


S = TypeVar("S")
_CHANGES = "field=value"
_DEFAULTS = TrainConfig().to_json()
_PRESETS = {
    preset: {key: getattr(config, key) for key, value in _DEFAULTS.items() if getattr(config, key) != value}
    for preset in ("instant",)
    for config in [TrainConfig.from_preset(preset)]
}
"""Presets that a spec string may name, with what is then not as in "fast"; "paper" is an eraser of its own."""


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


def _settled(name: str, make: Callable[[S, str], Eraser], settings: S, card: Card) -> tuple[str, Registration]:
    """Return the registration of an eraser whose settings may be changed, given what makes it of settings and spec."""
    named = _named(name)

    def made(argument: str) -> Eraser:
        words = _words(argument)
        return make(read_variant(name, words, settings, named), _spec(name, words))

    return name, Registration(make=made, card=card, argument=_choice(named), tuned=named.get(TUNED, {}))


def _membranes(
    name: str,
    make: Callable[[S, tuple[str, ...], str], Eraser],
    settings: S,
    card: Card,
    presets: Mapping[str, Mapping[str, Json]] | None = None,
) -> tuple[str, Registration]:
    """The same for erasers that may also be given membrane files, or the name of a preset."""
    named = {**_named(name), **(presets or {})}

    def made(argument: str) -> Eraser:
        words = _words(argument)
        files = tuple(word for word in words if word.endswith(".safetensors") or shipped_name(word) is not None)
        if files and len(files) < len(words):
            raise UnknownNameError(
                f"after {name!r} come membrane files (.safetensors) or settings of training, found both: {argument!r}"
            )
        if not files:
            return make(read_variant(name, words, settings, named), (), _spec(name, words))
        return make(settings, files, _spec(name, words))

    choice = f"{_choice(named)} | FILE.safetensors[,…] | zoo:CONCEPT[,…]"
    return name, Registration(make=made, card=card, argument=choice, tuned=named.get(TUNED, {}))


def _aimed(name: str, found: Registration) -> tuple[str, Registration]:
    """The registration of an eraser that reads the surrogate, with the choice of another one."""

    def made(argument: str) -> Eraser:
        words = _words(argument)
        rest = [word for word in words if word != SIBLING]
        try:
            inner = found.make(",".join(rest))
        except UnknownNameError as error:
            raise UnknownNameError(
                f"{error}; '{name}:{SIBLING}' aims at a sibling, not at the word for the group"
            ) from None
        return inner if len(rest) == len(words) else TowardsSiblings(inner, _spec(name, words))

    return name, replace(found, make=made, argument=" | ".join(filter(None, [SIBLING, found.argument])))


def _named(name: str) -> dict[str, Mapping[str, Json]]:
    """Return the word that stands for settings that were found, with them, if an eraser has any."""
    return {TUNED: found} if (found := tuned_settings().get(name)) else {}


def _choice(named: Mapping[str, Mapping[str, Json]]) -> str:
    return "".join(f"{word} | " for word in named) + f"{_CHANGES}[,…]"


def _words(argument: str) -> list[str]:
    return [word.strip() for word in argument.split(",")] if argument else []


def _spec(name: str, words: list[str]) -> str:
    return f"{name}:{','.join(words)}" if words else name


def _spm(rule: spm.Rule, training: TrainConfig, files: tuple[str, ...], spec: str) -> Eraser:
    return spm.Spm(spec, rule, training, files)


def _esd(part: Literal["x", "u"], settings: esd.EsdSettings, spec: str) -> Eraser:
    return esd.Esd(part, settings, spec)


def _reference(training: ReferenceSettings, files: tuple[str, ...], spec: str) -> Eraser:
    return spm_reference.SpmReference(training, files, spec)


def _in_tree() -> dict[str, Registration]:
    return dict(
        [
            _plain("noop", noop.Noop, noop.CARD),
            _plain("negative-prompt", negative_prompt.NegativePrompt, negative_prompt.CARD),
            _sld("sld", sld.CARD, gated=False),
            _settled("esd-x", partial(_esd, "x"), esd.EsdSettings(), esd.CARD),
            _settled("esd-u", partial(_esd, "u"), esd.EsdSettings(), esd.CARD),
            _aimed(
                *_settled(
                    "concept-ablation",
                    concept_ablation.ConceptAblation,
                    concept_ablation.AblationSettings(),
                    concept_ablation.CARD,
                )
            ),
            _settled("leco", leco.Leco, leco.TRAINING, leco.CARD),
            _aimed(*_settled("uce", uce.Uce, uce.UceSettings(), uce.CARD)),
            _aimed(*_settled("rece", rece.Rece, rece.ReceSettings(), rece.CARD)),
            _aimed(*_settled("mace-closed-form", mace.MaceClosedForm, mace.MaceSettings(), mace.CARD)),
            _aimed(*_settled("speed", speed.Speed, speed.SpeedSettings(), speed.CARD)),
            _membranes("spm-open", partial(_spm, "open"), TrainConfig(), spm.OPEN_CARD, _PRESETS),
            _aimed(*_plain("prompt-substitution", prompt_substitution.PromptSubstitution, prompt_substitution.CARD)),
            _plain(
                "gated-negative-prompt",
                partial(negative_prompt.NegativePrompt, gated=True),
                negative_prompt.GATED_CARD,
            ),
            _sld("gated-sld", sld.GATED_CARD, gated=True),
            _aimed(*_settled("gated-uce", uce.GatedUce, uce.UceSettings(), uce.GATED_CARD)),
            _membranes("spm-reference", _reference, ReferenceSettings(), spm_reference.CARD),
            _membranes("spm-paper", partial(_spm, "paper"), TrainConfig.from_preset("paper"), spm.PAPER_CARD),
            _membranes("spm", partial(_spm, "transport"), TrainConfig(), spm.CARD, _PRESETS),
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
    lines = ["| eraser | source | settings | tuned | compared with |", "| --- | --- | --- | --- | --- |"]
    for name, found in _in_tree().items():
        optional = not found.argument or _CHANGES in found.argument or found.argument == SIBLING
        argument = "" if optional else f":{found.argument.replace('|', '/')}"
        shown = found.card
        changes = ", ".join(f"{field_} {value}" for field_, value in found.tuned.items())
        tuned = f"{shown.tuned}; `{name}:tuned`: {changes}" if changes else shown.tuned
        lines.append(f"| `{name}{argument}` | {shown.paper} | {shown.defaults} | {tuned} | {shown.checked} |")
    return "\n".join(lines)
