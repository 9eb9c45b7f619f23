"""The hash of weights: of their values, whatever holds them."""

import hashlib

import pytest
import torch
from torch import nn

from hosts.quantising import by_torchao
from semipermeable.errors import AttachError
from semipermeable.hosts import weights_hash


def layer(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 64, bias=False)).requires_grad_(False)


def test_plain_weights_are_hashed_as_ever():
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}".encode() + value.half().numpy().tobytes())
    assert weights_hash(module) == digest.hexdigest()


def test_quantised_weights_are_hashed_by_their_values():
    one, again, other = (layer(seed) for seed in (0, 0, 1))
    for module in (one, again, other):
        by_torchao(module)
    hashes = []
    for fill in range(3):
        used = [bytes([fill + 1]) * 16384 for _ in range(50)]  # a heap that somebody used before
        del used
        hashes += [weights_hash(one), weights_hash(again)]
    assert len(set(hashes)) == 1
    assert weights_hash(other) != hashes[0] != weights_hash(layer(0))


class Nowhere(torch.Tensor):
    """Values that are not in memory, and do not say where."""

    @staticmethod
    def __new__(cls):
        return torch.Tensor._make_wrapper_subclass(cls, (2, 2), dtype=torch.float16)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return args[0]


def test_weights_that_cannot_be_read_are_refused():
    module = nn.Module()
    module.register_buffer("weight", Nowhere())
    with pytest.raises(AttachError, match="'weight' of Module is a Nowhere without memory"):
        weights_hash(module)
