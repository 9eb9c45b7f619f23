"""Denoisers with quantised weights, by the packages that users quantise with, and the same with plain weights."""

import contextlib

import pytest
import torch

from semipermeable.hosts import host_for


def by_torchao(linear):
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    quantization.quantize_(linear, quantization.Int8WeightOnlyConfig())
    return linear


def by_bitsandbytes_8bit(linear):
    nn = pytest.importorskip("bitsandbytes.nn", reason="bitsandbytes is not installed")
    made = nn.Linear8bitLt(linear.in_features, linear.out_features, linear.bias is not None, has_fp16_weights=False)
    made.load_state_dict(linear.state_dict())
    return made.to("cpu")


def by_bitsandbytes_4bit(linear):
    nn = pytest.importorskip("bitsandbytes.nn", reason="bitsandbytes is not installed")
    sizes = (linear.in_features, linear.out_features, linear.bias is not None)
    made = nn.Linear4bit(*sizes, compute_dtype=torch.float32, quant_type="nf4")
    made.load_state_dict(linear.state_dict())
    # As in a loaded model; but what is narrower than a packed block cannot run so where the CPU multiplies bf16.
    return made.to("cpu").train(linear.in_features % 64 > 0 or linear.out_features % 32 > 0)


def by_gguf(linear):
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

    if linear.in_features % 32:
        return linear
    kind = gguf.GGMLQuantizationType.Q8_0
    sizes = (linear.in_features, linear.out_features, linear.bias is not None)
    made = GGUFLinear(*sizes, compute_dtype=torch.float32)
    made.weight = GGUFParameter(torch.from_numpy(gguf.quants.quantize(linear.weight.numpy(), kind)), quant_type=kind)
    made.bias = linear.bias
    return made


def quantised(pipe, quantise):
    denoiser = host_for(pipe).denoiser.requires_grad_(False)
    # As diffusers does: it reads dtypes from them.
    spared = set(getattr(denoiser, "_keep_in_fp32_modules", None) or [])
    for name, module in list(denoiser.named_modules()):
        if type(module) is torch.nn.Linear and not spared & set(name.split(".")):
            owner, _, leaf = name.rpartition(".")
            setattr(denoiser.get_submodule(owner), leaf, quantise(module))


@contextlib.contextmanager
def dequantised(pipe):
    """Meanwhile plain layers, with the weights that the quantised ones multiply with, are in their places."""
    denoiser = host_for(pipe).denoiser
    layers = dict(denoiser.named_modules())
    kept = {name: layer for name, layer in layers.items() if isinstance(layer, torch.nn.Linear)}

    def put(name, layer):
        owner, _, leaf = name.rpartition(".")
        setattr(denoiser.get_submodule(owner), leaf, layer)

    with torch.no_grad():
        for name, layer in kept.items():
            plain = torch.nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
            zero = layer(torch.zeros(1, layer.in_features))
            plain.weight.copy_((layer(torch.eye(layer.in_features)) - zero).T)
            if layer.bias is not None:
                plain.bias.copy_(layer.bias)
            put(name, plain)
    yield
    for name, layer in kept.items():
        put(name, layer)


KINDS = [by_torchao, by_bitsandbytes_8bit, by_bitsandbytes_4bit, by_gguf]
"""int8; 8 and 4 bits; GGUF's Q8_0."""
