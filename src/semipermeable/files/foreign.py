"""Adapters of other programs: SPM's reference implementation, and kohya and LECO LoRA files of any rank.

All three store `<base>.lora_down.weight` D, `<base>.lora_up.weight` U and mostly `<base>.alpha`, where <base> is
`lora_unet_` and the site's dotted name with "_" for "."; they mean

    ΔW = (alpha / rank) · U D        (no alpha: the scale is 1)

The scale is folded into the signal, u = (alpha / rank) · U and v = D, so that γ = 1 is the adapter as trained. A scale
of 1 leaves U untouched in its dtype; any other product is rounded once, to fp32 (fp64 stays fp64).

The reference implementation scales U, D and alpha by γ, of which U and D take effect: its strength is γ². Its files
load with `gate_power=2`. They are told by their metadata: exactly `prompts`, `rank` and `alpha`, the targets as plain
text joined by commas. LECO writes `prompts` as JSON objects and `config`; kohya writes `ss_…` keys; both scale once.
The reference takes alpha from the metadata, not from the tensors; so do we, and refuse a file in which they differ.

Files with dotted names (diffusers, PEFT, ComfyUI) are `dotted`'s business; what a file of `exporting` says of itself is
taken as it is, so that exporting and loading are inverses.
"""

import ast
import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from semipermeable.concept import Concept
from semipermeable.errors import ConceptError, MembraneError, MembraneFileError, SiteError, closest
from semipermeable.files.container import Container, fail
from semipermeable.files.dotted import COMFY_PREFIX, PEFT_PREFIX, dotted_parts, is_dotted, scale_config
from semipermeable.files.export_story import EXPORT_KEY, ExportStory, read_story
from semipermeable.files.ldm_names import is_unet_name, names_of_unet
from semipermeable.membrane import Json, Membrane, Provenance
from semipermeable.sites import Site, find_sites, resolve_sites

__all__ = ["PREFIX", "is_foreign", "read_foreign", "resolve_foreign"]

PREFIX = "lora_unet_"
_PARTS = {"lora_down.weight": "down", "lora_up.weight": "up", "alpha": "alpha"}
_UNTOLD_STEMS = ("adapter_model", "pytorch_lora_weights")
"""File names that every adapter of PEFT and diffusers has; the folder's name says more."""
_TEXT_ENCODER_PREFIXES = ("lora_te_", "lora_te1_", "lora_te2_", "lora_te3_")
_REFERENCE_KEYS: Set[str] = frozenset({"prompts", "rank", "alpha"})
_KEPT_METADATA = ("prompts", "rank", "alpha", "ss_network_dim", "ss_network_alpha", "ss_network_module")
_Pairs: TypeAlias = dict[str, tuple[Tensor, Tensor]]
_ALPHA_TOLERANCE = 1e-2
"""Relative; alpha is saved in the training precision, and bf16 keeps eight bits."""


def is_foreign(container: Container) -> bool:
    """Whether a file holds LoRA tensors of another program."""
    kohya = any(name.startswith((PREFIX, *_TEXT_ENCODER_PREFIXES)) for name in container.entries)
    return kohya or is_dotted(container)


def read_foreign(container: Container) -> Membrane:
    """Read an adapter of another program, or one that this package exported; names are resolved when it is attached.

    Raises:
        MembraneFileError: naming the tensor or metadata key at fault.
    """
    told = read_story(container)
    dotted = is_dotted(container)
    reference = not dotted and _is_reference(container.metadata)
    pairs = _dotted_pairs(container) if dotted else _kohya_pairs(container, reference)
    try:
        if told is not None:
            return _as_told(container, told, pairs)
        provenance, unresolved = _origin(container, pairs, reference), not dotted or _is_comfy(pairs)
        return Membrane(pairs, _concept(container), provenance, None, 2 if reference else 1, unresolved)
    except ConceptError as error:
        fail(container.path, f"its metadata names no usable concept: {error}", "prompts", error)
    except MembraneError as error:
        if isinstance(error, MembraneFileError):
            raise
        fail(container.path, str(error), None, error)


def _kohya_pairs(container: Container, reference: bool) -> _Pairs:
    declared = _declared_alpha(container) if reference else None
    return {base: _pair(container, base, parts, declared) for base, parts in _by_base(container).items()}


def _dotted_pairs(container: Container) -> _Pairs:
    config = scale_config(container)
    pairs: _Pairs = {}
    for site, parts in dotted_parts(container).items():
        up, down = _pair(container, site, parts, None)
        if config is not None and "alpha" not in parts:
            up = _scaled(up, config.scale(site, down.shape[0]))
        pairs[site] = (up, down)
    return pairs


def _is_comfy(pairs: _Pairs) -> bool:
    return any(site.startswith(COMFY_PREFIX) for site in pairs)


def _origin(container: Container, pairs: _Pairs, reference: bool) -> Provenance:
    source = "reference" if reference else "kohya"
    if is_dotted(container):
        peft = any(name.startswith(PEFT_PREFIX) for name in container.entries)
        source = "comfyui" if _is_comfy(pairs) else "peft" if peft else "diffusers"
    kept: dict[str, Json] = {key: container.metadata[key] for key in _KEPT_METADATA if key in container.metadata}
    family = "unet" if not is_dotted(container) or all(is_unet_name(site) for site in pairs) else ""
    base_model = container.metadata.get("ss_sd_model_name", "")
    return Provenance(base_model=base_model, family=family, training={"metadata": kept, "source": source})


def _as_told(container: Container, told: ExportStory, pairs: _Pairs) -> Membrane:
    """Return the membrane that was exported, under its own names."""
    story = told.story
    named = {told.names.get(name, name): pair for name, pair in pairs.items()}
    strange = [name for name in named if name.startswith((PREFIX, COMFY_PREFIX)) and not story.foreign_names]
    if strange or len(named) < len(pairs) or set(told.names) - set(pairs):
        message = f"its sites are not those that metadata key {EXPORT_KEY!r} names; another tool changed the file"
        fail(container.path, f"{message}: remove that key to read it as any other LoRA", EXPORT_KEY)
    return Membrane(named, story.concept, story.provenance, None, story.gate_power, story.foreign_names)


def resolve_foreign(membrane: Membrane, denoiser: nn.Module) -> Membrane:
    """Give a foreign membrane the dotted site names of a denoiser.

    `lora_unet_a_b_c` becomes the site whose name with "_" for "." is `a_b_c`, where the name is diffusers' or that of
    the original UNet (`input_blocks…`); `diffusion_model.a.b.c` the site whose original name is `a.b.c`. A projection
    that is a Linear here and a 1x1 convolution in the file, or the other way round, is reshaped; the numbers stay.

    Args:
        membrane: as `load` returned it; one without foreign names is returned as it is.
        denoiser: the network it is for.

    Raises:
        SiteError: if a name fits no site or several, or a shape differs.
    """
    if not membrane.foreign_names:
        return membrane
    known = _names_of(denoiser)
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for base, (u, v) in membrane.pairs.items():
        sites = known.get(base, [])
        if not sites:
            raise SiteError(
                f"{closest(base, known, what='site')} The adapter was made for another architecture than "
                f"{type(denoiser).__name__}, or names its layers in another way than diffusers."
            )
        if len(sites) > 1:
            both = " and ".join(repr(site.name) for site in sites)
            raise SiteError(f"{base!r} fits {both}; rename the tensors to dotted site names and save as a membrane")
        pairs[sites[0].name] = (u, _fitted(v, sites[0].layer))
    resolve_sites(denoiser, pairs)
    return dataclasses.replace(membrane, pairs=pairs, foreign_names=False)


def _names_of(denoiser: nn.Module) -> dict[str, list[Site]]:
    """Return every name that other programs have for a site, with the sites it fits."""
    original = names_of_unet(name for name, _ in denoiser.named_modules())
    known: dict[str, list[Site]] = {}
    for site in find_sites(denoiser, inside=()).values():
        names = {site.name, PREFIX + site.name.replace(".", "_")}
        ldm = original.of(site.name) if original else None
        if ldm is not None:
            names |= {COMFY_PREFIX + ldm, PREFIX + ldm.replace(".", "_")}
        for name in names:
            known.setdefault(name, []).append(site)
    return known


def _fitted(v: Tensor, layer: nn.Module) -> Tensor:
    """Return v as the layer wants it, where a Linear and a 1x1 convolution are the same map."""
    if isinstance(layer, nn.Linear) and v.dim() == 4 and v.shape[2:] == (1, 1):
        return v[:, :, 0, 0]
    if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and v.dim() == 2:
        return v[:, :, None, None]
    return v


def _is_reference(metadata: Mapping[str, str]) -> bool:
    if metadata.keys() - {"format", EXPORT_KEY} != _REFERENCE_KEYS:
        return False
    return not metadata["prompts"].lstrip().startswith("{")


def _declared_alpha(container: Container) -> float | None:
    """The reference's alpha for every site; None where it says that alpha is the rank (0 or None)."""
    text = container.metadata["alpha"]
    if text == "None":
        return None
    try:
        alpha = float(text)
    except ValueError as error:
        fail(container.path, f"metadata key 'alpha' must be a number, found {text!r}", "alpha", error)
    if not math.isfinite(alpha):
        fail(container.path, f"metadata key 'alpha' must be finite, found {text!r}", "alpha")
    return alpha or None


def _by_base(container: Container) -> dict[str, dict[str, str]]:
    """Return base name to part to tensor name, after refusing what is not a plain low-rank pair."""
    found: dict[str, dict[str, str]] = {}
    for name in sorted(container.entries):
        base, _, part = name.partition(".")
        if base.startswith(_TEXT_ENCODER_PREFIXES):
            message = f"tensor {name!r} changes the text encoder, but a membrane acts on the denoiser only"
            fail(container.path, f"{message}; train it on the U-Net only, or remove those tensors", name)
        if not base.startswith(PREFIX) or part not in _PARTS:
            message = f"tensor {name!r} is none of lora_unet_….{', .'.join(_PARTS)}"
            fail(container.path, f"{message}; LoHa, LoKr, DoRA and LoCon-mid are not low-rank pairs", name)
        found.setdefault(base, {})[_PARTS[part]] = name
    for base, parts in found.items():
        for part, kind in _PARTS.items():
            if kind not in parts and kind != "alpha":
                fail(container.path, f"site {base!r} is incomplete: '{base}.{part}' is missing", f"{base}.{part}")
    return found


def _pair(container: Container, base: str, parts: Mapping[str, str], declared: float | None) -> tuple[Tensor, Tensor]:
    up_name, down_name = parts["up"], parts["down"]
    for name in (up_name, down_name):
        entry = container.entries[name]
        if not entry.dtype.is_floating_point or len(entry.shape) not in (2, 4) or 0 in entry.shape:
            fail(container.path, f"tensor {name!r} must be a weight of a Linear or Conv2d, found {entry}", name)
    up, down = container.tensor(up_name), container.tensor(down_name)
    if up.dim() == 4:
        if up.shape[2:] != (1, 1):
            fail(container.path, f"tensor {up_name!r} must be a 1x1 convolution, found {tuple(up.shape)}", up_name)
        up = up[:, :, 0, 0]
    rank = down.shape[0]
    if up.shape[1] != rank:
        shapes = f"up {tuple(up.shape)}, down {tuple(down.shape)}"
        fail(container.path, f"site {base!r}: the ranks differ ({shapes})", up_name)
    alpha = _stored_alpha(container, parts.get("alpha"))
    if declared is not None:
        if alpha is not None and abs(alpha - declared) > _ALPHA_TOLERANCE * abs(declared):
            message = f"tensor {parts['alpha']!r} is {alpha:g}, metadata key 'alpha' says {declared:g}"
            fail(container.path, f"{message}; make them equal, it is not clear which one was trained", parts["alpha"])
        alpha = declared
    return _scaled(up, 1.0 if alpha is None else alpha / rank), down


def _stored_alpha(container: Container, name: str | None) -> float | None:
    if name is None:
        return None
    if math.prod(container.entries[name].shape) != 1:
        fail(container.path, f"tensor {name!r} must be one number, found {container.entries[name]}", name)
    alpha = float(container.tensor(name).reshape(()).item())
    if alpha == 0:
        # kohya's loader reads 0 as "the rank", others multiply by it: the same file erases here and does nothing there.
        fail(
            container.path,
            f"tensor {name!r} is 0, which programs read differently; set it to the rank or remove it",
            name,
        )
    return alpha


def _scaled(up: Tensor, scale: float) -> Tensor:
    if scale == 1.0:
        return up
    return (up.double() * scale).to(torch.promote_types(up.dtype, torch.float32))


def _concept(container: Container) -> Concept:
    """Name and aliases from `prompts`; without them, the name kohya was given, or the file's."""
    names = [text for prompt in _prompts(container.metadata.get("prompts", "")) if (text := prompt.strip())]
    if not names:
        names = [container.metadata.get("ss_output_name", "").strip() or _stem(container.path)]
    return Concept(names[0], aliases=tuple(names[1:]))


def _stem(path: str) -> str:
    stem = Path(path).stem
    told = (Path(path).resolve().parent.name or stem) if stem in _UNTOLD_STEMS else stem
    return told.encode(errors="replace").decode()


def _prompts(text: str) -> list[str]:
    """Read targets joined by commas (reference), JSON objects with a target (LECO), or a written-out list."""
    text = text.strip()
    if text.startswith("{"):
        try:
            objects = cast("list[object]", json.loads(f"[{text}]"))
        except (ValueError, RecursionError):
            return []
        return _texts(cast("dict[str, object]", o).get("target") for o in objects if isinstance(o, dict))
    if text.startswith("[") and len(text) <= 10_000:
        try:
            written = ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return text.split(",")
        return _texts(cast("list[object]", written)) if isinstance(written, list) else text.split(",")
    return text.split(",")


def _texts(values: Iterable[object]) -> list[str]:
    return [value for value in values if isinstance(value, str)]
