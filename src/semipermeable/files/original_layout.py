"""Weights under the names, and in the pieces, of the programs that models were first released with.

Each function takes the state dict of a module of diffusers or transformers and returns the same numbers as the
original program keeps them: names change, projections that were split (q, k, v) become one matrix again, and a
projection of images by 1×1 convolution gets its kernel back. UNets and VAEs are CompVis' and Stability's (`ldm`,
`sgm`), text encoders OpenAI's CLIP as transformers keeps it and OpenCLIP, FLUX.1 Black Forest Labs'. The names of UNet
and VAE layers are those of `ldm_names`.
"""

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from semipermeable.errors import ExportError
from semipermeable.files.ldm_names import names_of_unet, vae_name

__all__ = ["clip_weights", "flux_weights", "open_clip_weights", "unet_weights", "vae_weights"]

Weights = dict[str, Tensor]

_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_OPEN_CLIP_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_OPEN_CLIP_PARTS = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_OPEN_CLIP_JOINED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

_FLUX = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    **{
        f"time_text_embed.{ours}_embedder.linear_{number}": f"{theirs}_in.{layer}_layer"
        for ours, theirs in (("timestep", "time"), ("text", "vector"), ("guidance", "guidance"))
        for number, layer in ((1, "in"), (2, "out"))
    },
}
_FLUX_DOUBLE = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
_FLUX_DOUBLE_NORMS = {
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
}
_FLUX_SINGLE = {"norm.linear": "modulation.lin", "proj_out": "linear2"}
_FLUX_SINGLE_NORMS = {"attn.norm_q": "norm.query_norm", "attn.norm_k": "norm.key_norm"}
_FLUX_JOINED = {
    "transformer_blocks": {
        "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    },
    "single_transformer_blocks": {"linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")},
}
_FLUX_BLOCK = re.compile(r"((?:single_)?transformer_blocks)\.(\d+)\.(.+)\.(weight|bias)")


def unet_weights(state: Mapping[str, Tensor]) -> Weights:
    """Return the weights of a UNet as the original program names them, "input_blocks.0.0.weight".

    Raises:
        ExportError: naming a weight that has no place there.
    """
    names = names_of_unet(name.rpartition(".")[0] for name in state)
    return _renamed("unet", state, lambda name: names.of(name) if names else None)


def vae_weights(state: Mapping[str, Tensor]) -> Weights:
    """Return the weights of an `AutoencoderKL` as the original program names them, "encoder.conv_in.weight".

    Raises:
        ExportError: naming a weight that has no place there.
    """
    blocks = {name.split(".")[2] for name in state if name.startswith("decoder.up_blocks.")}
    found = _renamed("vae", state, lambda name: vae_name(name, len(blocks)))
    # The attention of the original VAE is made of 1x1 convolutions.
    attention = (".attn_1.q.", ".attn_1.k.", ".attn_1.v.", ".attn_1.proj_out.")
    return {
        name: value[:, :, None, None] if value.dim() == 2 and any(part in name for part in attention) else value
        for name, value in found.items()
    }


def clip_weights(state: Mapping[str, Tensor]) -> Weights:
    """Return the weights of a `CLIPTextModel` under "text_model.", where transformers had them at first."""
    return {f"text_model.{name.removeprefix('text_model.')}": value for name, value in state.items()}


def open_clip_weights(state: Mapping[str, Tensor]) -> Weights:
    """Return the weights of a CLIP text encoder of transformers as OpenCLIP keeps them.

    There q, k and v are one matrix, and the text projection P multiplies from the right: x P, not P xᵀ.

    Raises:
        ExportError: naming a weight that has no place there.
    """
    found: Weights = {}
    for full, value in state.items():
        name = full.removeprefix("text_model.")
        layer = _OPEN_CLIP_LAYER.fullmatch(name)
        if name == "text_projection.weight":
            found["text_projection"] = value.T
        elif name in _OPEN_CLIP:
            found[_OPEN_CLIP[name]] = value
        elif layer and layer[2] in _OPEN_CLIP_PARTS:
            found[f"transformer.resblocks.{layer[1]}.{_OPEN_CLIP_PARTS[layer[2]]}.{layer[3]}"] = value
        elif layer and layer[2] in _OPEN_CLIP_JOINED:
            start = full.removesuffix(f"{layer[2]}.{layer[3]}")
            parts = [state[f"{start}{part}.{layer[3]}"] for part in _OPEN_CLIP_JOINED]
            found[f"transformer.resblocks.{layer[1]}.attn.in_proj_{layer[3]}"] = torch.cat(parts)
        else:
            raise _without_a_place("text encoder", full)
    return found


def flux_weights(state: Mapping[str, Tensor]) -> Weights:
    """Return the weights of a `FluxTransformer2DModel` as FLUX.1 was released, "double_blocks.0.img_attn.qkv.weight".

    There q, k, v (and in single blocks the feed-forward's first layer) are one matrix, and the last modulation gives
    shift before scale, where diffusers has scale before shift.

    Raises:
        ExportError: naming a weight that has no place there.
    """
    found: Weights = {}
    for full, value in state.items():
        name, _, kind = full.rpartition(".")
        block = _FLUX_BLOCK.fullmatch(full)
        if block:
            found |= _flux_block(state, full, block)
        elif name == "norm_out.linear":
            scale, shift = value.chunk(2)
            found[f"{_FLUX[name]}.{kind}"] = torch.cat([shift, scale])
        elif name in _FLUX:
            found[f"{_FLUX[name]}.{kind}"] = value
        else:
            raise _without_a_place("transformer", full)
    return found


def _flux_block(state: Mapping[str, Tensor], full: str, block: re.Match[str]) -> Weights:
    kind, number, layer, last = block[1], block[2], block[3], block[4]
    single = kind.startswith("single")
    base = f"{'single' if single else 'double'}_blocks.{number}"
    plain, norms = (_FLUX_SINGLE, _FLUX_SINGLE_NORMS) if single else (_FLUX_DOUBLE, _FLUX_DOUBLE_NORMS)
    if layer in plain:
        return {f"{base}.{plain[layer]}.{last}": state[full]}
    if layer in norms and last == "weight":
        return {f"{base}.{norms[layer]}.scale": state[full]}
    for name, parts in _FLUX_JOINED[kind].items():
        if layer in parts:
            start = f"{kind}.{number}."
            joined = [state.get(f"{start}{part}.{last}") for part in parts]
            whole = [value for value in joined if value is not None]
            if len(whole) == len(parts):
                # Once for all parts, at the first of them.
                return {f"{base}.{name}.{last}": torch.cat(whole)} if layer == parts[0] else {}
    raise _without_a_place("transformer", full)


def _renamed(part: str, state: Mapping[str, Tensor], rename: Callable[[str], str | None]) -> Weights:
    found: Weights = {}
    for name, value in state.items():
        original = rename(name)
        if original is None:
            raise _without_a_place(part, name)
        found[original] = value
    return found


def _without_a_place(part: str, name: str) -> ExportError:
    return ExportError(
        f"weight {name!r} of {part!r} has no place in the original layout; bake a folder instead (--format folder)"
    )
