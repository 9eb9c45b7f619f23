"""The trained artefact: a frozen set of low-rank pairs with the concept they erase and where they came from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias, cast

import torch
from torch import Tensor

from semipermeable.concept import Concept
from semipermeable.errors import MembraneError

__all__ = ["GateState", "Json", "Membrane", "Provenance"]

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
"""Anything JSON can hold."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a membrane came from. Empty text means "not known".

    Args:
        base_model: id of the base model, e.g. "zoo:emoji".
        base_hash: SHA-256 of the base denoiser's weights.
        text_encoder_hash: SHA-256 of the text encoder's weights; the stored gate is valid for this encoder only.
        family: host family, e.g. "unet".
        prediction_type: "epsilon", "v_prediction", "flow", or "".
        training: the training configuration, JSON data.
        seed: the training seed, or None.
        package_version: version of semipermeable that made it.
        metrics: measured figures, name to number.
        created: ISO date, or "" (the default keeps files reproducible).
    """

    base_model: str = ""
    base_hash: str = ""
    text_encoder_hash: str = ""
    family: str = ""
    prediction_type: str = ""
    training: Mapping[str, Json] = field(default_factory=lambda: dict[str, Json]())
    seed: int | None = None
    package_version: str = ""
    metrics: Mapping[str, float] = field(default_factory=lambda: dict[str, float]())
    created: str = ""


@dataclass(frozen=True, slots=True)
class GateState:
    """A fitted permeability rule, as stored with the membrane.

    Args:
        kind: name of the rule that understands it, e.g. "transport".
        settings: numbers and texts, JSON data.
        tensors: name to tensor, e.g. a probe's weights.
    """

    kind: str
    settings: Mapping[str, Json]
    tensors: Mapping[str, Tensor] = field(default_factory=lambda: dict[str, Tensor]())


@dataclass(frozen=True, eq=False)
class Membrane:
    """An eraser of one concept: `{site: (signal u, regulator v)}` and its story.

    Args:
        pairs: site name to (u, v); u has shape (out, k), v has shape (k, in, *kernel); floating point, finite;
            kept as copies on the CPU.
        concept: what it erases.
        provenance: where it came from.
        gate: a fitted permeability rule, or None.
        gate_power: exponent on γ; 1 is the paper, 2 is how checkpoints of the reference implementation behave.
        foreign_names: True while site names are those of another format and await resolution at attach.

    Raises:
        MembraneError: on an empty set, no tensors, wrong shapes, or values that are not finite, naming the site.
    """

    pairs: Mapping[str, tuple[Tensor, Tensor]]
    concept: Concept
    provenance: Provenance = Provenance()
    gate: GateState | None = None
    gate_power: int = 1
    foreign_names: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.concept, Concept):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise MembraneError(f"concept must be a Concept, found {self.concept!r}; write Concept({self.concept!r})")
        if not self.pairs:
            raise MembraneError(f"membrane {self.concept.name!r} has no site")
        if self.gate_power not in (1, 2):
            raise MembraneError(f"gate_power must be 1 or 2, found {self.gate_power!r}")
        frozen: dict[str, tuple[Tensor, Tensor]] = {}
        for name in sorted(self.pairs):
            frozen[name] = _checked(name, self.pairs[name])
        object.__setattr__(self, "pairs", MappingProxyType(frozen))

    @property
    def name(self) -> str:
        """The concept's name."""
        return self.concept.name

    @property
    def rank(self) -> int:
        """The largest rank of any site."""
        return max(u.shape[1] for u, _ in self.pairs.values())

    @property
    def num_parameters(self) -> int:
        """Number of stored weights over all sites."""
        return sum(u.numel() + v.numel() for u, v in self.pairs.values())

    def __repr__(self) -> str:
        return f"Membrane({self.name!r}, sites={len(self.pairs)}, rank={self.rank}, parameters={self.num_parameters})"


def _checked(name: str, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    if not isinstance(pair, tuple | list) or [isinstance(part, Tensor) for part in pair] != [True, True]:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise MembraneError(f"site {name!r}: expected two torch tensors (u, v), found {_kinds(pair)}")
    u, v = pair
    shapes = f"u {tuple(u.shape)}, v {tuple(v.shape)}"
    if u.dim() != 2 or v.dim() not in (2, 4) or u.shape[1] != v.shape[0] or 0 in (*u.shape, *v.shape):
        raise MembraneError(f"site {name!r}: expected u (out, k) and v (k, in, *kernel), found {shapes}")
    for label, tensor in (("u", u), ("v", v)):
        if not tensor.is_floating_point():
            raise MembraneError(f"site {name!r}: {label} must be floating point, found {tensor.dtype}")
        if not bool(torch.isfinite(tensor).all()):
            raise MembraneError(f"site {name!r}: {label} holds NaN or infinity; the training that made it diverged")
    return u.detach().to("cpu", copy=True), v.detach().to("cpu", copy=True)


def _kinds(pair: object) -> str:
    if not isinstance(pair, tuple | list):
        return type(pair).__name__
    return f"({', '.join(type(part).__name__ for part in cast('Sequence[object]', pair))})"
