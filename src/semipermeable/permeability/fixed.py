"""Permeabilities that do not look at the prompt, and the reading of `permeability=`."""

import math
from collections.abc import Callable, Mapping, Sequence

from semipermeable.errors import PermeabilityError, closest
from semipermeable.permeability.decisions import Decision, EncodedPrompt, GatedConcept, Permeability
from semipermeable.permeability.paper import PaperTransport
from semipermeable.permeability.transport import Transport

__all__ = ["Constant", "PerConcept", "resolve"]


def _checked(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PermeabilityError(f"{where} must be a number in [0, 1], found {value!r}")
    gamma = float(value)
    if not math.isfinite(gamma) or gamma < 0.0:
        raise PermeabilityError(f"{where} must be a finite number in [0, 1], found {gamma}")
    if gamma > 1.0:
        raise PermeabilityError(
            f"{where} is {gamma:g}, but γ lies in [0, 1]; to act more strongly than trained pass strength={gamma:g}"
        )
    return gamma


class Constant:
    """The same γ for every prompt and concept.

    Args:
        gamma: γ in [0, 1].

    Raises:
        PermeabilityError: if γ is not a finite number in [0, 1].
    """

    def __init__(self, gamma: float) -> None:
        self.gamma = _checked(gamma, "permeability")

    def decide(self, prompts: Sequence[EncodedPrompt], concept: GatedConcept) -> list[Decision]:  # noqa: ARG002
        """Return the constant for every prompt."""
        return [Decision(self.gamma, f"constant {self.gamma:g}")] * len(prompts)

    def __repr__(self) -> str:
        return f"Constant({self.gamma:g})"


class PerConcept:
    """A constant γ for each concept named; concepts not named follow another rule.

    Args:
        gammas: concept name to γ in [0, 1].
        otherwise: the rule for concepts that `gammas` does not name; None is `Transport()`.

    Raises:
        PermeabilityError: if nothing is named, or a γ is not a finite number in [0, 1].
    """

    def __init__(self, gammas: Mapping[str, float], otherwise: Permeability | None = None) -> None:
        if not gammas:
            raise PermeabilityError('permeability={} names no concept; write {"cat": 1.0} or "transport"')
        for name in gammas:
            if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise PermeabilityError(f"permeability names concepts by text, found the key {name!r}")
        self._rules = {name: Constant(_checked(g, f"permeability of {name!r}")) for name, g in gammas.items()}
        self._otherwise = otherwise or Transport()

    @property
    def names(self) -> tuple[str, ...]:
        """The concepts named, in order."""
        return tuple(self._rules)

    @property
    def otherwise(self) -> Permeability:
        """The rule for concepts that are not named."""
        return self._otherwise

    def decide(self, prompts: Sequence[EncodedPrompt], concept: GatedConcept) -> Sequence[Decision]:
        """Return the concept's constant, or what the other rule says of a concept not named."""
        return self._rules.get(concept.concept.name, self._otherwise).decide(prompts, concept)

    def __repr__(self) -> str:
        gammas = ", ".join(f"{name!r}: {rule.gamma:g}" for name, rule in self._rules.items())
        return f"PerConcept({{{gammas}}})"


_NAMED: Mapping[str, Callable[[], Permeability]] = {
    "transport": Transport,
    "paper": PaperTransport,
    "open": lambda: Constant(1.0),
    "closed": lambda: Constant(0.0),
}


def resolve(spec: str | float | Mapping[str, float] | Permeability) -> Permeability:
    """Return the rule that a `permeability=` argument means.

    Args:
        spec: "transport" (calibrated, the default), "paper" (Eq. 10 and 11), "open" (γ = 1), "closed" (γ = 0); a number
            in [0, 1]; a mapping from concept name to number; or any object with `decide(prompts, concept)`.

    Raises:
        PermeabilityError: if it is none of these, or a number lies outside [0, 1].
    """
    if isinstance(spec, str):
        if spec not in _NAMED:
            raise PermeabilityError(closest(spec, _NAMED, what="permeability"))
        return _NAMED[spec]()
    if isinstance(spec, Mapping):
        return PerConcept(spec)
    if isinstance(spec, Permeability) and not isinstance(spec, type):
        return spec
    if isinstance(spec, int | float) and not isinstance(spec, bool):
        return Constant(spec)
    raise PermeabilityError(
        f"permeability is {spec!r}; give one of {', '.join(map(repr, _NAMED))}, a number in [0, 1], a mapping from "
        "concept name to number, or an object with decide(prompts, concept)"
    )
