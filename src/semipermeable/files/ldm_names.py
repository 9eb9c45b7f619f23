"""Names of UNet and VAE layers in the original Stable Diffusion layout, from their diffusers names.

The original UNet numbers its layers through: with L resnets a block, resnet r of down block b is number 1 + b(L+1) + r
of `input_blocks` and resnet r of up block b number b(L+1) + r of `output_blocks`, each with its attention beside it. A
downsampler has a number of its own; an upsampler is the last part of the last number of its block. So a name needs L,
and for an upsampler whether its block has attention.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["LdmNames", "is_unet_name", "names_of_membrane", "names_of_unet", "vae_name"]

_FIXED = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.attentions.0": "middle_block.1",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)(?:\.(.+))?")
_MID_RESNET = re.compile(r"mid_block\.resnets\.([01])\.(.+)")
_UNET_START = ("down_blocks.", "up_blocks.", "mid_block.", "conv_in", "conv_out", "time_embedding.", "add_embedding.")
_VAE_FIXED = {
    "conv_norm_out": "norm_out",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0.group_norm": "mid.attn_1.norm",
    "mid_block.attentions.0.to_q": "mid.attn_1.q",
    "mid_block.attentions.0.to_k": "mid.attn_1.k",
    "mid_block.attentions.0.to_v": "mid.attn_1.v",
    "mid_block.attentions.0.to_out.0": "mid.attn_1.proj_out",
}
_VAE_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(?:resnets\.(\d+)|(?:down|up)samplers\.0)\.(.+)")


@dataclass(frozen=True, slots=True)
class LdmNames:
    """The numbering of one UNet.

    Args:
        layers_per_block: L, the resnets of a down block.
        attentive: numbers of the up blocks that have attention.
    """

    layers_per_block: int
    attentive: frozenset[int]

    def of(self, name: str) -> str | None:
        """Return the original name of a layer or weight, or None if the original layout has no place for it."""
        for known, original in _FIXED.items():
            if name == known or name.startswith(f"{known}."):
                return original + name[len(known) :]
        mid = _MID_RESNET.fullmatch(name)
        if mid:
            return _resnet(f"middle_block.{2 * int(mid[1])}", mid[2])
        found = _BLOCK.fullmatch(name)
        return self._in_block(found[1], int(found[2]), found[3], int(found[4]), found[5] or "") if found else None

    def _in_block(self, way: str, block: int, kind: str, index: int, rest: str) -> str | None:
        step = self.layers_per_block + 1
        last = step if way == "up" else self.layers_per_block
        if kind.endswith("samplers"):
            layer, _, tail = rest.partition(".")
            if index or layer != "conv" or (way == "up") != (kind == "upsamplers"):
                return None
            end = f".{tail}" if tail else ""
            if way == "down":
                return f"input_blocks.{(block + 1) * step}.0.op{end}"
            return f"output_blocks.{block * step + step - 1}.{2 if block in self.attentive else 1}.conv{end}"
        if index >= last:
            return None
        base = f"input_blocks.{1 + block * step + index}" if way == "down" else f"output_blocks.{block * step + index}"
        return _resnet(f"{base}.0", rest) if kind == "resnets" else f"{base}.1" + (f".{rest}" if rest else "")


def _resnet(base: str, rest: str) -> str | None:
    layer, _, tail = rest.partition(".")
    return f"{base}.{_RESNET[layer]}" + (f".{tail}" if tail else "") if layer in _RESNET else None


def is_unet_name(name: str) -> bool:
    """Whether a site's name is that of a diffusers UNet layer."""
    return name.startswith(_UNET_START)


def _indices(names: Iterable[str]) -> dict[tuple[str, str], dict[int, set[int]]]:
    """Return (way, kind) to block to the indices found there."""
    found: dict[tuple[str, str], dict[int, set[int]]] = {}
    for name in names:
        match = _BLOCK.fullmatch(name)
        if match:
            found.setdefault((match[1], match[3]), {}).setdefault(int(match[2]), set()).add(int(match[4]))
    return found


def names_of_unet(names: Iterable[str]) -> LdmNames | None:
    """Return the numbering of a UNet from the names of all its layers; None if it is no UNet with equal blocks."""
    found = _indices(names)
    counts = {len(indices) for indices in found.get(("down", "resnets"), {}).values()}
    counts |= {len(indices) - 1 for indices in found.get(("up", "resnets"), {}).values()}
    if len(counts) != 1:
        return None
    return LdmNames(counts.pop(), frozenset(found.get(("up", "attentions"), {})))


def names_of_membrane(names: Iterable[str]) -> LdmNames | None:
    """Return the numbering that a membrane's own sites prove, or None.

    Proof is a pair in each of L attentions of every down block and each of L + 1 of every up block that it touches, and
    no other kind of layer in those blocks.
    """
    found = _indices(names)
    if set(found) != {("down", "attentions"), ("up", "attentions")}:
        return None
    up = found["up", "attentions"]
    layers = max(max(indices) for indices in up.values())
    complete = all(indices == set(range(layers + 1)) for indices in up.values())
    complete &= all(indices == set(range(layers)) for indices in found["down", "attentions"].values())
    return LdmNames(layers, frozenset(up)) if complete else None


def vae_name(name: str, num_up_blocks: int) -> str | None:
    """Return the original name of a weight of diffusers' `AutoencoderKL`, or None if there is no place for it.

    Args:
        name: e.g. "decoder.up_blocks.0.resnets.1.conv1.weight".
        num_up_blocks: up blocks of the decoder; the original counts them backwards.
    """
    part, _, rest = name.partition(".")
    if part in ("quant_conv", "post_quant_conv"):
        return name
    if part not in ("encoder", "decoder"):
        return None
    for known, original in _VAE_FIXED.items():
        if rest.startswith(f"{known}."):
            tail = rest[len(known) :]
            return f"{part}.{original}{tail}".replace("conv_shortcut", "nin_shortcut")
    found = _VAE_BLOCK.fullmatch(rest)
    if found:
        way, block, resnet, tail = found[1], int(found[2]), found[3], found[4]
        number = block if way == "down" else num_up_blocks - 1 - block
        middle = f"{way}sample" if resnet is None else f"block.{resnet}"
        return f"{part}.{way}.{number}.{middle}.{tail}".replace("conv_shortcut", "nin_shortcut")
    return name if rest.startswith(("conv_in.", "conv_out.")) else None
