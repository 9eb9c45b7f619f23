"""Where training begins: a denoiser that may be trained on, its flags put aside, and the first pairs."""

import contextlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from semipermeable.errors import AttachError
from semipermeable.files.foreign import resolve_foreign
from semipermeable.hosts import Host
from semipermeable.membrane import Membrane
from semipermeable.runtime import TrainableBinding, refuse_rewritten, view_owner
from semipermeable.sites import Site, find_sites, resolve_sites
from semipermeable.training.captions import CaptionSet
from semipermeable.training.config import TrainConfig
from semipermeable.training.examples import generator_for
from semipermeable.training.workshop import Workshop

__all__ = ["avoidable", "avoided", "prepared", "refuse_held", "regulators", "start", "trained_sites"]


def refuse_held(host: Host) -> None:
    """Refuse a pipeline whose denoiser cannot be trained on as it is.

    Raises:
        AttachError: if it is compiled, fused or already holds membranes.
    """
    for part in host.denoisers.values():
        owner = view_owner(part)
        if owner is not None:
            raise AttachError(f"this pipeline holds {owner!r}; detach it before training")
        refuse_rewritten(part)


@contextlib.contextmanager
def prepared(host: Host, config: TrainConfig) -> Generator[None, None, None]:
    """Freeze the denoiser's own weights meanwhile; give every flag back afterwards."""
    denoiser = host.denoiser
    flags = [(p, p.requires_grad) for p in denoiser.parameters()]
    modes = [(m, m.training) for m in denoiser.modules()]
    recomputing = [(m, m.gradient_checkpointing) for m in denoiser.modules() if hasattr(m, "gradient_checkpointing")]
    try:
        denoiser.eval().requires_grad_(False)
        _keep_unpacked(denoiser)
        if config.gradient_checkpointing:
            for part in host.denoisers.values():
                cast("Any", part).enable_gradient_checkpointing()
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode
        for module, flag in recomputing:
            module.gradient_checkpointing = flag  # pyright: ignore[reportAttributeAccessIssue]


def _keep_unpacked(denoiser: nn.Module) -> None:
    """Let gradients pass bitsandbytes' 4-bit layers on a CPU.

    Where the CPU multiplies bf16, such a layer packs its weights in its first call without gradients, unless it is in
    training mode, into a form whose product has no derivative. Its `state_dict` unpacks what an earlier call packed.
    """
    for module in denoiser.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.train()
            module.state_dict()


@contextlib.contextmanager
def start(
    workshop: Workshop, captions: CaptionSet, config: TrainConfig, seed: int, orthogonal_to: Sequence[Membrane]
) -> Generator[TrainableBinding, None, None]:
    """Bind the pairs with which training begins; arguments as in `train`."""
    sites = trained_sites(workshop, config)
    first = generator_for(seed, 0)
    device = workshop.host.device
    taken = avoided(sites, orthogonal_to)
    binding = TrainableBinding(sites, rank=config.rank, generator=first, device=device, avoid=taken)
    try:
        if config.closed_form:
            binding.load_pairs(workshop.closed_form(captions, config, orthogonal_to))
        yield binding
    finally:
        binding.remove()


def trained_sites(workshop: Workshop, config: TrainConfig) -> dict[str, Site]:
    """Return the sites of a trained membrane: those of the family, and those that the closed form starts from."""
    sites = find_sites(workshop.host.denoiser, workshop.host.site_classes)
    return {**sites, **workshop.text_projections()} if config.closed_form else sites


def avoidable(host: Host, orthogonal_to: Sequence[Membrane]) -> tuple[Membrane, ...]:
    """Return membranes to stay orthogonal to under the denoiser's own site names.

    Raises:
        SiteError: if one was made for another model.
    """
    if not orthogonal_to:
        return ()
    found = tuple(resolve_foreign(membrane, host.denoiser) for membrane in orthogonal_to)
    known = find_sites(host.denoiser, ())
    for membrane in found:
        resolve_sites(host.denoiser, dict(membrane.pairs), known=known)
    return found


def regulators(orthogonal_to: Sequence[Membrane]) -> Iterator[bytes]:
    """Yield what a digest of membranes to stay orthogonal to is taken of: the name and the regulator of every site."""
    for membrane in orthogonal_to:
        for name, (_, v) in membrane.pairs.items():
            yield name.encode() + v.float().contiguous().numpy().tobytes()


def avoided(sites: Mapping[str, Site], orthogonal_to: Sequence[Membrane]) -> dict[str, list[Tensor]]:
    """Return the regulators of other membranes at each site, by site name."""
    return {name: [m.pairs[name][1] for m in orthogonal_to if name in m.pairs] for name in sites}
