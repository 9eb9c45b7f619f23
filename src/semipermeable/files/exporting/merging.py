"""Several membranes as one of higher rank.

The sum Σ_c γ_c u_c v_cᵀ of rank-1 matrices has rank k = number of membranes: it is the product of the signals side by
side with the regulators one above the other, u = [γ_1 u_1 … γ_k u_k], v = [v_1; …; v_k]. Adding the factors instead,
(Σ γ_c u_c)(Σ v_c)ᵀ, as the reference implementation does, is another matrix of rank 1 with cross terms.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from semipermeable import __version__
from semipermeable.concept import Concept
from semipermeable.errors import ExportError
from semipermeable.membrane import Membrane, Provenance

__all__ = ["merge"]


def merge(membranes: Sequence[Membrane], gammas: Sequence[float] | None = None) -> Membrane:
    """Return one membrane that acts as all of them together, each held open by its γ.

    Args:
        membranes: at least one, with site names of one kind.
        gammas: γ of each, finite, may exceed 1 or be negative; γ^gate_power scales the signal, rounded once, to fp32. 1
            for all, if None. One with γ = 0 leaves no pair.

    Returns:
        The sum, of rank Σk at a site that all have. It has no gate, and its concept goes by all their names.

    Raises:
        ExportError: if there is nothing to add, numbers differ, or the membranes belong to different models.
    """
    factors = [1.0] * len(membranes) if gammas is None else [float(gamma) for gamma in gammas]
    if not membranes:
        raise ExportError("there is no membrane to merge; give at least one")
    if len(factors) != len(membranes):
        raise ExportError(f"{len(membranes)} membranes need as many γ, found {len(factors)}; write one for each")
    if not all(math.isfinite(factor) for factor in factors):
        raise ExportError(f"γ must be finite numbers, found {', '.join(f'{factor:g}' for factor in factors)}")
    _check_same_model(membranes)
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for membrane, factor in zip(membranes, factors, strict=True):
        for site, (u, v) in membrane.pairs.items():
            if factor != 0:
                parts.setdefault(site, []).append((_scaled(u, factor**membrane.gate_power), v))
    if not parts:
        raise ExportError("every γ is 0, so nothing is left to merge")
    pairs = {site: _stacked(site, several) for site, several in parts.items()}
    story = _provenance(membranes, factors)
    return Membrane(pairs, _concept(membranes), story, foreign_names=membranes[0].foreign_names)


def _check_same_model(membranes: Sequence[Membrane]) -> None:
    first = membranes[0]
    for other in membranes[1:]:
        if other.foreign_names != first.foreign_names:
            foreign = other if other.foreign_names else first
            raise ExportError(
                f"{foreign.name!r} has the site names of another program and the others have not; give the model they "
                "are for, so that its names can be found (--model)"
            )
        hashes = (first.provenance.base_hash, other.provenance.base_hash)
        if all(hashes) and hashes[0] != hashes[1]:
            raise ExportError(
                f"{first.name!r} and {other.name!r} were trained on different models "
                f"({first.provenance.base_model or hashes[0][:12]}, {other.provenance.base_model or hashes[1][:12]})"
            )


def _scaled(u: Tensor, factor: float) -> Tensor:
    if factor == 1.0:
        return u
    return (u.double() * factor).to(torch.promote_types(u.dtype, torch.float32))


def _stacked(site: str, pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    shapes = {(u.shape[0], *v.shape[1:]) for u, v in pairs}
    if len(shapes) > 1:
        found = " and ".join(str(shape) for shape in sorted(shapes))
        raise ExportError(f"site {site!r} has shapes {found}; the membranes were made for different models")
    return torch.cat([u.cpu() for u, _ in pairs], 1), torch.cat([v.cpu() for _, v in pairs], 0)


def _concept(membranes: Sequence[Membrane]) -> Concept:
    if len(membranes) == 1:
        return membranes[0].concept
    names = [name for membrane in membranes for name in membrane.concept.names]
    erased = {name.casefold() for name in names}
    kept = [phrase for membrane in membranes for phrase in membrane.concept.keep if phrase.casefold() not in erased]
    return Concept(" + ".join(membrane.name for membrane in membranes), tuple(names), keep=tuple(kept))


def _provenance(membranes: Sequence[Membrane], gammas: Sequence[float]) -> Provenance:
    """Keep what all agree on, and say what was merged."""

    def common(field: str) -> str:
        values = {str(getattr(membrane.provenance, field)) for membrane in membranes}
        return values.pop() if len(values) == 1 else ""

    return Provenance(
        base_model=common("base_model"),
        base_hash=common("base_hash"),
        text_encoder_hash=common("text_encoder_hash"),
        family=common("family"),
        prediction_type=common("prediction_type"),
        training={
            "merged": [{"concept": m.name, "gamma": gamma} for m, gamma in zip(membranes, gammas, strict=True)],
            "source": "merge",
        },
        package_version=__version__,
    )
