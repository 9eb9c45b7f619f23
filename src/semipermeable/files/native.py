"""The package's own membrane file: one `.safetensors` with canonical bytes.

Tensors are named `u::<site>`, `v::<site>` and `gate::<name>`. The kind comes first so that a name splits at the first
"::" in one way only, whatever a site or a gate tensor is called (`<site>::u` would meet a gate tensor "u" at a site
called "gate"). All other data is the text of one metadata key: the safetensors library writes several keys in no stable
order.
"""

import hashlib
import os
from pathlib import Path

import torch
from safetensors.torch import save as serialise
from torch import Tensor

from semipermeable.errors import MembraneError, MembraneFileError, OutputError
from semipermeable.files.atomic import write_atomically
from semipermeable.files.container import DTYPES, Container, fail
from semipermeable.files.metadata import KEY, decode, encode
from semipermeable.membrane import GateState, Membrane

__all__ = ["check_name", "digest", "read_native", "save", "to_bytes"]

_KINDS = ("u", "v", "gate")


def to_bytes(membrane: Membrane) -> bytes:
    """Return the canonical bytes of a membrane's file.

    Raises:
        MembraneError: if a tensor or a setting cannot be stored, naming it.
    """
    tensors: dict[str, Tensor] = {}
    for site, (u, v) in membrane.pairs.items():
        tensors[f"u::{site}"] = u
        tensors[f"v::{site}"] = v
    for name, tensor in (membrane.gate.tensors if membrane.gate else {}).items():
        tensors[f"gate::{name}"] = tensor
    return serialise({name: _storable(name, tensor) for name, tensor in tensors.items()}, {KEY: encode(membrane)})


def save(membrane: Membrane, path: str | os.PathLike[str]) -> None:
    """Write a membrane as one `.safetensors`, atomically; equal membranes give equal bytes.

    Args:
        membrane: what to write.
        path: where; ends in ".safetensors". An existing file is replaced.

    Raises:
        MembraneError: if a tensor or a setting cannot be stored, naming it.
        OutputError: if the name has another ending, or the file cannot be written; an old one is then still there.
    """
    check_name(path)
    write_atomically(path, to_bytes(membrane))


def digest(membrane: Membrane) -> str:
    """Return the SHA-256 of the file that `save` writes."""
    return hashlib.sha256(to_bytes(membrane)).hexdigest()


def check_name(path: str | os.PathLike[str]) -> None:
    """Refuse a name that no membrane file has; to be called before the work whose result goes there.

    Raises:
        OutputError: if it does not end in ".safetensors".
    """
    if Path(path).suffix != ".safetensors":
        raise OutputError(f"cannot write {os.fspath(path)!r}: a membrane file ends in .safetensors; change the name")


def read_native(container: Container) -> Membrane:
    """Read a membrane from an opened file of this format.

    Raises:
        MembraneFileError: naming the tensor or metadata field at fault.
    """
    path = container.path
    extra = sorted(set(container.metadata) - {KEY})
    if extra:
        fail(
            path,
            f"has the metadata key {extra[0]!r} beside {KEY!r}; another tool rewrote it, use the original",
            extra[0],
        )
    try:
        story = decode(container.metadata[KEY])
    except MembraneFileError as error:
        fail(path, str(error), error.key, error)
    by_kind = _sorted_names(container)
    if by_kind["gate"] and story.gate is None:
        name = f"gate::{by_kind['gate'][0]}"
        fail(path, f"tensor {name!r} belongs to a gate, but the metadata says there is none", name)
    pairs = {site: _pair(container, site) for site in by_kind["u"]}
    gate = None
    if story.gate is not None:
        tensors = {name: container.tensor(f"gate::{name}") for name in by_kind["gate"]}
        gate = GateState(story.gate[0], story.gate[1], tensors)
    try:
        return Membrane(pairs, story.concept, story.provenance, gate, story.gate_power, story.foreign_names)
    except MembraneError as error:
        fail(path, str(error), None, error)


def _storable(name: str, tensor: Tensor) -> Tensor:
    if tensor.dtype not in DTYPES.values():
        raise MembraneError(f"tensor {name!r} has dtype {tensor.dtype}; a membrane file holds {', '.join(DTYPES)}")
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise MembraneError(f"tensor {name!r} holds NaN or infinity")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise MembraneError(f"tensor name {name!r} is not valid Unicode text; rename it") from error
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _sorted_names(container: Container) -> dict[str, list[str]]:
    """Return site and gate tensor names by kind, after checking that every u has a v."""
    found: dict[str, list[str]] = {kind: [] for kind in _KINDS}
    for name in sorted(container.entries):
        kind, separator, rest = name.partition("::")
        if not separator or kind not in found:
            fail(container.path, f"tensor {name!r} is none of u::<site>, v::<site>, gate::<name>", name)
        found[kind].append(rest)
    for site in sorted(set(found["u"]) ^ set(found["v"])):
        have, lack = ("u", "v") if site in found["u"] else ("v", "u")
        message = f"site {site!r} has {have} but no {lack}: tensor '{lack}::{site}' is missing"
        fail(container.path, message, f"{lack}::{site}")
    if not found["u"]:
        fail(container.path, "holds no site; the file is empty")
    return found


def _pair(container: Container, site: str) -> tuple[Tensor, Tensor]:
    names = (f"u::{site}", f"v::{site}")
    for name in names:
        entry = container.entries[name]
        if not entry.dtype.is_floating_point:
            fail(container.path, f"tensor {name!r} must be floating point, found {entry.dtype}", name)
    u, v = (container.entries[name].shape for name in names)
    if len(u) != 2 or 0 in u:
        fail(container.path, f"tensor {names[0]!r} must have shape (out, k), found {u}", names[0])
    if len(v) not in (2, 4) or 0 in v or v[0] != u[1]:
        expected = f"({u[1]}, in, *kernel) to go with u {u}"
        fail(container.path, f"tensor {names[1]!r} must have shape {expected}, found {v}", names[1])
    return container.tensor(names[0]), container.tensor(names[1])
