"""A stand-in for the parts of ComfyUI that our nodes touch, written from its documented interface.

- `ModelPatcher`: `model.diffusion_model`, `model_options`, `clone` (which copies the options in depth),
  `set_model_unet_function_wrapper`.
- `CONDRegular`: one row, repeated to the batch; two are joined when their shapes are equal.
- `CLIP`: `tokenize` gives pieces of at most 77 pairs (token, weight); `tokenizer.untokenize`;
  `encode_from_tokens_scheduled` gives [[states, options]].
- `sample_once`: what a sampler does with conditionings in one step: `model_conds` are processed, conditionings with
  equal keys share a call, the function wrapper is called with input, timestep, c and cond_or_uncond.
- `OriginalUNet`: a diffusers UNet under the names of the original layout.
"""

import copy
import types
from itertools import groupby

import torch
from torch import nn


class CONDRegular:
    def __init__(self, cond):
        self.cond = cond

    def process_cond(self, batch_size):
        return type(self)(self.cond.repeat(batch_size, *[1] * (self.cond.dim() - 1))[:batch_size])

    def join(self, others):
        return torch.cat([self.cond, *(other.cond for other in others)])


class _Holder(nn.Module):
    """A downsampler calls its convolution `op`, an upsampler `conv`."""

    def __init__(self, name, layer):
        super().__init__()
        setattr(self, name, layer)


class OriginalUNet(nn.Module):
    """The layers of a diffusers UNet, under the names by which the original layout knows them."""

    def __init__(self, unet):
        super().__init__()
        self._whole = [unet]  # in a list: its names must not be found
        self.input_blocks = nn.ModuleList([nn.ModuleList([unet.conv_in])])
        for block in unet.down_blocks:
            for index, resnet in enumerate(block.resnets):
                self.input_blocks.append(nn.ModuleList([resnet, *_attention(block, index)]))
            for sampler in block.downsamplers or []:
                self.input_blocks.append(nn.ModuleList([_Holder("op", sampler.conv)]))
        middle = unet.mid_block
        self.middle_block = nn.ModuleList([middle.resnets[0], middle.attentions[0], middle.resnets[1]])
        self.output_blocks = nn.ModuleList()
        for block in unet.up_blocks:
            for index, resnet in enumerate(block.resnets):
                self.output_blocks.append(nn.ModuleList([resnet, *_attention(block, index)]))
            for sampler in block.upsamplers or []:
                self.output_blocks[-1].append(_Holder("conv", sampler.conv))

    def forward(self, x, timesteps, context):
        return self._whole[0](x, timesteps, encoder_hidden_states=context).sample


def _attention(block, index):
    return [block.attentions[index]] if hasattr(block, "attentions") else []


class _BaseModel:
    def __init__(self, diffusion_model):
        self.diffusion_model = diffusion_model
        self.calls = []

    def apply_model(self, x, t, c_crossattn=None, transformer_options=None):
        """Takes no other condition: what a wrapper leaves in `c` by mistake is an error here."""
        self.calls.append((x.shape[0], transformer_options["cond_or_uncond"]))
        return self.diffusion_model(x, t, c_crossattn)


class ModelPatcher:
    def __init__(self, model):
        self.model = model
        self.model_options = {"transformer_options": {}}

    def clone(self):
        other = type(self)(self.model)
        other.model_options = copy.deepcopy(self.model_options)
        return other

    def set_model_unet_function_wrapper(self, wrapper):
        self.model_options["model_function_wrapper"] = wrapper


def patcher_of(unet):
    return ModelPatcher(_BaseModel(OriginalUNet(unet)))


class CLIP:
    """ComfyUI's CLIP around a transformers tokenizer and text encoder."""

    PIECE = 75

    def __init__(self, tokenizer, encoder):
        self._tokenizer, self._encoder = tokenizer, encoder
        self.tokenizer = types.SimpleNamespace(untokenize=self._untokenize)

    def tokenize(self, text):
        ids = self._tokenizer(text, add_special_tokens=False).input_ids
        start, end = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        pieces = []
        for place in range(0, max(len(ids), 1), self.PIECE):
            own = ids[place : place + self.PIECE]
            piece = [start, *own, end]
            pieces.append([(number, 1.0) for number in piece + [end] * (self.PIECE + 2 - len(piece))])
        return {"l": pieces}

    def _untokenize(self, pairs):
        return [(pair, self._tokenizer.convert_ids_to_tokens(pair[0])) for pair in pairs]

    def encode_from_tokens_scheduled(self, tokens):
        states = []
        with torch.no_grad():
            for piece in tokens["l"]:
                window = [number for number, _ in piece][: self._tokenizer.model_max_length]
                states.append(self._encoder(torch.tensor([window]))[0])
        return [[torch.cat(states, 1), {"pooled_output": None}]]


def sample_once(patcher, conditionings, x, t):
    """Return the model's answer to each conditioning: [positive, negative, …]."""
    runs = []
    for place, conditioning in enumerate(conditionings):
        for states, options in conditioning:
            conds = {**options.get("model_conds", {}), "c_crossattn": CONDRegular(states)}
            runs.append((place, {name: cond.process_cond(x.shape[0]) for name, cond in conds.items()}))
    answers = {}
    for _, group in groupby(sorted(runs, key=_kind), key=_kind):
        members = list(group)
        places = [place for place, _ in members]
        c = {name: members[0][1][name].join([m[1][name] for m in members[1:]]) for name in members[0][1]}
        c["transformer_options"] = {**patcher.model_options["transformer_options"], "cond_or_uncond": places}
        rows, times = x.repeat(len(members), 1, 1, 1), t.repeat(len(members))
        wrapper = patcher.model_options.get("model_function_wrapper")
        if wrapper is None:
            out = patcher.model.apply_model(rows, times, **c)
        else:
            arguments = {"input": rows, "timestep": times, "c": c, "cond_or_uncond": places}
            out = wrapper(patcher.model.apply_model, arguments)
        answers.update(zip(places, out.chunk(len(members)), strict=True))
    return [answers[place] for place in range(len(conditionings))]


def _kind(run):
    return sorted((name, tuple(cond.cond.shape)) for name, cond in run[1].items())
