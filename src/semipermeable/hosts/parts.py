"""What passes between a host and the layers above it: rows of text, weights as hashes, denoisers as one module."""

import ctypes
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from semipermeable.errors import AttachError
from semipermeable.runtime import Role, RowText, uncompiled

__all__ = [
    "CallRows",
    "EncodeResult",
    "Observed",
    "RowText",
    "TextRows",
    "patch_shift",
    "row_texts",
    "together",
    "weights_hash",
]

TextRows: TypeAlias = Tensor | Sequence[Tensor]
"""Embeddings, one row per sample: a tensor (rows, sequence, dim), or a list of rows of different lengths."""


def _as_list(prompt: str | Sequence[str]) -> list[str]:
    return [prompt] if isinstance(prompt, str) else list(prompt)


def row_texts(given: dict[str, Any], argument: str, window: int) -> list[str] | None:
    """Return what each row is made from; None where there is no text.

    Args:
        given: arguments of the encode method.
        argument: the first encoder's text; what others read is called the same with a number: "prompt_2".
        window: more tokens than usual, or 0.
    """
    name = re.compile(rf"{argument}(_\d+)?")
    lists = [_as_list(value) for key, value in given.items() if value is not None and name.fullmatch(key)]
    if not lists:
        return None
    length = max(map(len, lists))
    rows: list[str] = []
    for index in range(length):
        # Of a list of another length nobody knows which text is whose.
        read = [texts[index : index + 1] if len(texts) == length else texts for texts in lists]
        distinct = list(dict.fromkeys(text for texts in read for text in texts if text)) or [""]
        rows.append(distinct[0] if len(distinct) == 1 and not window else RowText(distinct, window))
    return rows


class CallRows(NamedTuple):
    """The rows of one denoiser call.

    Args:
        text: embeddings whose bytes tell which prompt a row came from.
        conditional: which rows are not the unconditional or negative ones.
        named: whether the pipeline itself said which pass this is, so that an unconditional row is closed whatever its
            text; otherwise what is known of a row's text goes first.
    """

    text: TextRows
    conditional: list[bool]
    named: bool = False


class EncodeResult(NamedTuple):
    """Where a pipeline's encode method puts embeddings in the tuple it returns.

    Args:
        positive: index of the prompts' embeddings.
        negative: index of the negative prompts' embeddings, or None where the method knows none.
    """

    positive: int = 0
    negative: int | None = 1


class Observed(NamedTuple):
    """What one call of the encode method showed.

    Args:
        result: what it returned.
        known: (rows returned, their texts, role).
        passed: (rows given, rows returned, role) of embeddings that it passed through.
    """

    result: Any
    known: list[tuple[TextRows, list[str], Role]]
    passed: list[tuple[TextRows, TextRows, Role]]


def weights_hash(module: nn.Module) -> str:
    """SHA-256 over names, shapes and values of all weights, rounded to fp16, so that the load dtype does not matter.

    Args:
        module: any module; parameters and persistent buffers count. PEFT-wrapped layers count as if unwrapped, and
            weights that accelerate has offloaded as if they were in place.

    Raises:
        AttachError: if a weight is nowhere in memory, or in none that can be read.
    """
    digest, module = hashlib.sha256(), uncompiled(module)
    for name, kept in sorted(module.state_dict().items()):
        if ".lora_" in name:
            continue
        tensor = _in_memory(module, name) if kept.device.type == "meta" else kept
        for part, plain in _plain(name.replace(".base_layer", ""), tensor.detach()):
            value = plain.to("cpu", torch.float16).contiguous()
            if value.numel() and not value.data_ptr():
                raise AttachError(
                    f"weight {name!r} of {type(module).__name__} is a {type(plain).__name__} without memory of its "
                    "own, so what it is cannot be checked. Quantise in another way, or not at all."
                )
            digest.update(f"{part}{tuple(value.shape)}".encode())
            digest.update(ctypes.string_at(value.data_ptr(), value.numel() * value.element_size()))
    return digest.hexdigest()


def _plain(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Give the tensors that a weight is made of: itself, or those inside of it (torchao's quantised weights)."""
    if not is_traceable_wrapper_subclass(tensor):
        yield name, tensor
        return
    for inner in tensor.__tensor_flatten__()[0]:
        yield from _plain(f"{name}.{inner}", getattr(tensor, inner))


def _in_memory(module: nn.Module, name: str) -> Tensor:
    """Return a weight that accelerate's offloading has replaced by one on the meta device."""
    owner, _, leaf = name.rpartition(".")
    hook: Any = getattr(module.get_submodule(owner), "_hf_hook", None)
    for each in getattr(hook, "hooks", (hook,)):
        weights = getattr(each, "weights_map", None)
        if weights is not None:
            return weights[leaf]
    raise AttachError(
        f"weight {name!r} of {type(module).__name__} is not in memory (device meta), so what it is cannot be checked. "
        "Load the model before attaching."
    )


def together(denoisers: Mapping[str, nn.Module]) -> nn.Module:
    """Return the one denoiser, or a module that holds several: a site is then named "transformer_2.blocks.0…".

    What `torch.compile` has wrapped is taken out of its wrapper, so that names of sites are the same.
    """
    plain = {name: uncompiled(module) for name, module in denoisers.items()}
    return next(iter(plain.values())) if len(plain) == 1 else nn.ModuleDict(plain)


def patch_shift(config: Mapping[str, Any], patches: int, *, max_shift: float = 1.15) -> float:
    """Return mu, by which flow-matching schedulers shift their sigmas: linear in the number of patches.

    Args:
        config: the scheduler's; says mu at two numbers of patches, where it says it.
        patches: of one picture.
        max_shift: mu at the greater number, where the config is silent; pipelines differ in it.
    """
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", max_shift)
    slope = (high - low) / (many - few)
    return patches * slope + low - slope * few
