"""The adapter layouts of other programs.

All hold, for a site of rank k, down = v of shape (k, in, *kernel) and up = u of shape (out, k), or (out, k, 1, 1)
beside a convolution, with alpha = k or none: their scale alpha / k is exactly 1 and no number is rounded.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save as serialise
from torch import Tensor, nn

from semipermeable.errors import ExportError, closest
from semipermeable.files.atomic import write_atomically
from semipermeable.files.dotted import COMFY_PREFIX, CONFIG_NAME, DIFFUSERS_KEY, PEFT_PREFIX
from semipermeable.files.export_story import EXPORT_KEY, NOTICE, write_story
from semipermeable.files.exporting.staging import new_folder
from semipermeable.files.foreign import PREFIX, resolve_foreign
from semipermeable.files.ldm_names import is_unet_name, names_of_membrane, names_of_unet
from semipermeable.membrane import Membrane

__all__ = ["LAYOUTS", "Layout", "export"]

_Pairs = Mapping[str, tuple[Tensor, Tensor]]
WEIGHTS_NAME = "adapter_model.safetensors"
"""The file that PEFT looks for in an adapter's folder."""
_SECOND = "transformer_2."
"""How sites begin that are of the second denoiser of a pipeline (Wan 2.2)."""


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to write an adapter.

    Args:
        describes: the programs that read it.
        names: from a membrane and its denoiser (or None) to a name in the file for every site.
        tensors: from pairs under those names to tensors.
        metadata: texts beside our own, for the program that reads it.
        folder: whether it is a folder with a configuration rather than one file.
    """

    describes: str
    names: Callable[[Membrane, nn.Module | None], dict[str, str]]
    tensors: Callable[[_Pairs], dict[str, Tensor]]
    metadata: Callable[[Membrane, _Pairs], dict[str, str]]
    folder: bool = False


def export(membrane: Membrane, path: str | os.PathLike[str], layout: str, *, denoiser: nn.Module | None = None) -> None:
    """Write a membrane as an adapter that another program loads; it has no gate there.

    `load` reads the equal membrane back, without the gate. Equal membranes give equal bytes.

    Args:
        membrane: what to write.
        path: a file ending in ".safetensors", replaced if it exists; for "peft" a new folder.
        layout: a key of `LAYOUTS`.
        denoiser: the network it is for; needed where site names have to be found out (the message says so).

    Raises:
        ExportError: if the layout is unknown or cannot express the membrane.
        SiteError: if the membrane does not fit the denoiser.
        OutputError: if it cannot be written; what was there before still is.
    """
    if layout not in LAYOUTS:
        raise ExportError(closest(layout, LAYOUTS, what="adapter format"))
    chosen, target = LAYOUTS[layout], Path(path)
    if not chosen.folder and target.suffix != ".safetensors":
        raise ExportError(
            f"the file of a {layout} adapter ends in .safetensors, found {str(target)!r}; change the name"
        )
    if chosen.folder and target.suffix == ".safetensors":
        raise ExportError(f"a {layout} adapter is a folder, found the file name {str(target)!r}; drop the ending")
    if denoiser is not None:
        membrane = resolve_foreign(membrane, denoiser)
    names = chosen.names(membrane, denoiser)
    pairs = {names[site]: (_plain(u), _plain(v)) for site, (u, v) in membrane.pairs.items()}
    if len(pairs) < len(membrane.pairs):
        raise ExportError(f"two sites of {membrane.name!r} have one name as a {layout} adapter; use diffusers or peft")
    told = {name: site for site, name in names.items() if name != site} if not _is_dotted(layout) else {}
    metadata = chosen.metadata(membrane, pairs) | {EXPORT_KEY: write_story(membrane, layout, told)}
    data = _to_bytes(chosen.tensors(pairs), metadata)
    if not chosen.folder:
        write_atomically(target, data)
        return
    with new_folder(target) as stage:
        write_atomically(stage / WEIGHTS_NAME, data)
        write_atomically(stage / CONFIG_NAME, _peft_config(membrane, pairs).encode())


def _is_dotted(layout: str) -> bool:
    return layout in ("diffusers", "peft")


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _to_bytes(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Serialise with the metadata in order: safetensors writes several keys in no stable one."""
    raw = serialise(tensors, metadata)
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + raw[end:]


def _up(u: Tensor, v: Tensor) -> Tensor:
    return u[:, :, None, None] if v.dim() == 4 else u


def _down_up_alpha(pairs: _Pairs) -> dict[str, Tensor]:
    # Where ranks differ alpha is left out, by convention the scale 1: diffusers matches the alphas of
    # attention layers to no layer then, and would take the commonest one for them.
    one_rank = len(_ranks(pairs)) == 1
    tensors: dict[str, Tensor] = {}
    for name, (u, v) in pairs.items():
        tensors |= {f"{name}.lora_down.weight": v, f"{name}.lora_up.weight": _up(u, v)}
        if one_rank:
            tensors[f"{name}.alpha"] = torch.tensor(float(u.shape[1]))
    return tensors


def _a_b(prefix: str) -> Callable[[_Pairs], dict[str, Tensor]]:
    def tensors(pairs: _Pairs) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, (u, v) in pairs.items():
            base = (prefix or f"{_component(pairs)}.") + name
            found |= {f"{base}.lora_A.weight": v, f"{base}.lora_B.weight": _up(u, v)}
        return found

    return tensors


def _component(pairs: _Pairs) -> str:
    """The pipeline's name of the denoiser, by which diffusers prefixes its keys."""
    return "unet" if all(is_unet_name(site) for site in pairs) else "transformer"


def _dotted_names(membrane: Membrane, _: nn.Module | None) -> dict[str, str]:
    if membrane.foreign_names:
        raise ExportError(
            f"{membrane.name!r} has the site names of another program; give the model it is for, so that "
            "diffusers' names can be found (--model)"
        )
    if any(site.startswith(_SECOND) for site in membrane.pairs):
        raise ExportError(
            f"{membrane.name!r} sits on two denoisers ({_SECOND}… too), and an adapter of diffusers or PEFT is for "
            "one; bake a folder instead (--format folder)"
        )
    return {site: site for site in membrane.pairs}


def _kohya_names(membrane: Membrane, _: nn.Module | None) -> dict[str, str]:
    names: dict[str, str] = {}
    for site in membrane.pairs:
        if site.startswith(PREFIX):
            names[site] = site
        elif site.startswith(COMFY_PREFIX) or is_unet_name(site):
            names[site] = PREFIX + site.removeprefix(COMFY_PREFIX).replace(".", "_")
        else:
            raise ExportError(
                f"site {site!r} is no layer of a UNet, for which kohya has names; export as diffusers or peft"
            )
    return names


def _comfy_names(membrane: Membrane, denoiser: nn.Module | None) -> dict[str, str]:
    sites = list(membrane.pairs)
    if all(site.startswith(COMFY_PREFIX) for site in sites):
        return {site: site for site in sites}
    _dotted_names(membrane, denoiser)
    if denoiser is None:
        original = names_of_membrane(sites)
        if original is None:
            raise ExportError(
                f"the sites of {membrane.name!r} do not tell how many layers a block of its model has, and ComfyUI "
                "numbers them through; give the model (--model), or export as kohya, which ComfyUI reads too"
            )
    else:
        original = names_of_unet(name for name, _ in denoiser.named_modules())
    found = {site: original.of(site) if original else None for site in sites}
    for site, name in found.items():
        if name is None:
            raise ExportError(f"site {site!r} has no name in the original UNet; export as diffusers or peft")
    return {site: f"{COMFY_PREFIX}{name}" for site, name in found.items()}


def _ranks(pairs: _Pairs) -> set[int]:
    return {u.shape[1] for u, _ in pairs.values()}


def _kohya_metadata(membrane: Membrane, pairs: _Pairs) -> dict[str, str]:
    ranks = _ranks(pairs)
    rank = str(next(iter(ranks))) if len(ranks) == 1 else "Dynamic"
    found = {
        "ss_network_alpha": rank,
        "ss_network_dim": rank,
        "ss_network_module": "networks.lora",
        "ss_output_name": membrane.name,
        "ss_sd_model_name": membrane.provenance.base_model,
        "ss_training_comment": f"Erases {membrane.name}. {NOTICE}",
    }
    return {key: text for key, text in found.items() if text}


def _reference_metadata(membrane: Membrane, pairs: _Pairs) -> dict[str, str]:
    ranks = sorted(_ranks(pairs))
    if len(ranks) > 1:
        raise ExportError(f"the reference implementation has one rank for all sites, found {ranks}; export as kohya")
    with_comma = next((name for name in membrane.concept.names if "," in name), None)
    if with_comma is not None:
        raise ExportError(f"the reference implementation splits names at commas, found {with_comma!r}; export as kohya")
    return {"alpha": str(float(ranks[0])), "prompts": ",".join(membrane.concept.names), "rank": str(ranks[0])}


def _lora_config(pairs: _Pairs) -> dict[str, object]:
    """Return the fields of PEFT's LoraConfig that say: alpha = rank at every site."""
    ranks = {site: u.shape[1] for site, (u, _) in pairs.items()}
    counts = list(ranks.values())
    rank = max(sorted(set(counts)), key=counts.count)
    others = {"^" + re.sub(r"([.-])", r"\\\1", site): k for site, k in sorted(ranks.items()) if k != rank}
    return {
        "alpha_pattern": others,
        "lora_alpha": rank,
        "r": rank,
        "rank_pattern": others,
        "target_modules": sorted(ranks),
    }


def _diffusers_metadata(_: Membrane, pairs: _Pairs) -> dict[str, str]:
    config = {f"{_component(pairs)}.{key}": value for key, value in _lora_config(pairs).items()}
    return {"format": "pt", DIFFUSERS_KEY: json.dumps(config, indent=2, sort_keys=True)}


def _plain_metadata(_: Membrane, __: _Pairs) -> dict[str, str]:
    return {"format": "pt"}


def _peft_config(membrane: Membrane, pairs: _Pairs) -> str:
    config: dict[str, object] = {
        "base_model_name_or_path": membrane.provenance.base_model or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "task_type": None,
        "use_dora": False,
        "use_rslora": False,
    }
    return json.dumps(config | _lora_config(pairs), indent=2, sort_keys=True) + "\n"


LAYOUTS: Mapping[str, Layout] = {
    "kohya": Layout("A1111, Forge, ComfyUI, diffusers, kohya", _kohya_names, _down_up_alpha, _kohya_metadata),
    "diffusers": Layout("diffusers' load_lora_weights", _dotted_names, _a_b(""), _diffusers_metadata),
    "peft": Layout("PEFT", _dotted_names, _a_b(PEFT_PREFIX), _plain_metadata, folder=True),
    "comfyui": Layout("ComfyUI, under its own names", _comfy_names, _down_up_alpha, _plain_metadata),
    "reference": Layout("the paper's reference implementation", _kohya_names, _down_up_alpha, _reference_metadata),
}
"""The adapter layouts that can be written, by name."""
