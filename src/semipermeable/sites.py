"""Where a membrane may sit: the Linear and Conv2d layers of a denoiser, under their dotted names.

SPM puts a pair on every Linear and Conv2d inside the denoiser's `Transformer2DModel` blocks (192 sites on SD 1.4).
Layers that another adapter has wrapped (PEFT keeps the original as `.base_layer`) stay one site under the outer name.
Classes are matched by name so that this module needs torch only.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from semipermeable.errors import SiteError, closest
from semipermeable.rank1 import pair_shapes

__all__ = ["Site", "find_sites", "resolve_sites"]


@dataclass(frozen=True, slots=True)
class Site:
    """One layer that can carry pairs.

    Args:
        name: dotted name in the denoiser, e.g. "mid_block.attentions.0.proj_in".
        module: the module whose forward is observed (the wrapper, where another adapter wrapped the layer).
        layer: the Linear or Conv2d itself.
    """

    name: str
    module: nn.Module
    layer: nn.Module

    @property
    def weight(self) -> nn.Parameter:
        """The layer's weight, shape (out, in, *kernel)."""
        weight = self.layer.weight
        if not isinstance(weight, nn.Parameter):
            raise SiteError(f"site {self.name!r} has no plain weight (quantised?); fold is not possible")
        return weight


def _class_names(module: nn.Module) -> set[str]:
    return {cls.__name__ for cls in type(module).__mro__}


def _layer_of(module: nn.Module) -> nn.Module | None:
    base = getattr(module, "base_layer", None)
    layer = base if isinstance(base, nn.Module) else module
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return None  # A depthwise convolution (Sana) mixes no channels: a rank-1 pair has no place there.
    return layer if isinstance(layer, nn.Linear | nn.Conv2d) else None


def _walk(module: nn.Module, prefix: str, within: bool, inside: frozenset[str]) -> Iterator[Site]:
    within = within or bool(inside & _class_names(module))
    for child_name, child in module.named_children():
        name = f"{prefix}.{child_name}" if prefix else child_name
        layer = _layer_of(child)
        if layer is None:
            yield from _walk(child, name, within, inside)
        elif within:
            yield Site(name, child, layer)


def find_sites(denoiser: nn.Module, inside: tuple[str, ...] = ("Transformer2DModel",)) -> dict[str, Site]:
    """Return all sites in module order.

    Args:
        denoiser: the network that predicts noise.
        inside: class names; only layers below a module of such a class count. Empty means all layers.

    Raises:
        SiteError: if there is no site.
    """
    sites = {site.name: site for site in _walk(denoiser, "", not inside, frozenset(inside))}
    if not sites:
        where = " or ".join(inside) or "the denoiser"
        raise SiteError(f"{type(denoiser).__name__} has no Linear or Conv2d inside {where}; nothing to attach to")
    return sites


def resolve_sites(
    denoiser: nn.Module, pairs: dict[str, tuple[Tensor, Tensor]], *, known: Mapping[str, Site] | None = None
) -> dict[str, Site]:
    """Find the site of every named pair and check its shape.

    Args:
        denoiser: the network that predicts noise.
        pairs: site name to (u, v).
        known: all sites of the denoiser, if they have been found before; None finds them.

    Raises:
        SiteError: naming the first site that is missing or whose shape differs.
    """
    known = find_sites(denoiser, inside=()) if known is None else known
    found: dict[str, Site] = {}
    for name, (u, v) in pairs.items():
        site = known.get(name)
        if site is None:
            raise SiteError(_missing(denoiser, name, known))
        expected = pair_shapes(site.layer, u.shape[-1])
        if (tuple(u.shape), tuple(v.shape)) != expected:
            raise SiteError(
                f"site {name!r}: membrane has u {tuple(u.shape)}, v {tuple(v.shape)}; this denoiser needs u "
                f"{expected[0]}, v {expected[1]}. The membrane was made for a model of another size."
            )
        found[name] = site
    return found


def _missing(denoiser: nn.Module, name: str, known: Mapping[str, Site]) -> str:
    """Say why a denoiser has no site of a name: something else sits there, or it is another architecture."""
    module = dict(denoiser.named_modules()).get(name)
    if module is None:
        return (
            f"{closest(name, known, what='site')} The membrane was made for another architecture than "
            f"{type(denoiser).__name__}."
        )
    kind = type(module)
    if "quantized" in kind.__module__:
        return (
            f"site {name!r} was quantised by torch.ao into a {kind.__module__}.{kind.__name__}, which is no "
            "torch.nn.Linear or Conv2d any more, so nothing can be added beside it. Load the model unquantised, or "
            "quantise its weights with torchao, bitsandbytes or GGUF, which keep the layers."
        )
    return (
        f"site {name!r} is a {kind.__name__} in this {type(denoiser).__name__}, and a pair goes beside a Linear or "
        "Conv2d only. The membrane was made for another architecture, or the layer was replaced; load the model anew."
    )
