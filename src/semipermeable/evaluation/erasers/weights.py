"""Other weights in a denoiser for a while, and erasures that are nothing but other weights.

The denoiser's own parameters are never written: other `Parameter` objects take their places and the former objects come
back, so that what is restored is the same memory, bit for bit. All that share the denoiser see the change meanwhile.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from semipermeable.errors import AttachError
from semipermeable.evaluation.erasers.protocol import Draw
from semipermeable.evaluation.erasers.subjects import bytes_of
from semipermeable.hosts import host_for
from semipermeable.membrane import Json
from semipermeable.runtime import refuse_rewritten, view_owner

__all__ = ["WeightErasure", "bare_denoiser", "frozen", "swapped"]


def bare_denoiser(pipe: Any) -> nn.Module:
    """Return a pipeline's denoiser, ready to be given other weights.

    Raises:
        AttachError: if membranes are attached, or it is compiled or fused, so that weights may not be read.
    """
    host = host_for(pipe)
    for part in host.denoisers.values():
        owner = view_owner(part)
        if owner is not None:
            raise AttachError(f"this pipeline holds {owner!r}; detach it before other weights are put in")
        refuse_rewritten(part)
    return host.denoiser


@contextmanager
def swapped(denoiser: nn.Module, weights: Mapping[str, Tensor]) -> Generator[None, None, None]:
    """Let a denoiser read other weights inside the `with` block.

    Args:
        denoiser: the network.
        weights: dotted parameter name to value; a `Parameter` is used as it is (gradients reach it), a plain tensor is
            moved to the former's device and dtype.

    Raises:
        AttachError: if a name is unknown or a shape differs; nothing has changed then.
    """
    former = dict(denoiser.named_parameters())
    for name, value in weights.items():
        if name not in former or former[name].shape != value.shape:
            has = f"has {tuple(former[name].shape)}" if name in former else "has no such weight"
            raise AttachError(
                f"weight {name!r} of shape {tuple(value.shape)} does not fit: this denoiser {has}. The erasure was "
                "prepared on another model."
            )
    new = {name: _parameter(value, former[name]) for name, value in weights.items()}
    try:
        for name, parameter in new.items():
            _put(denoiser, name, parameter)
        yield
    finally:
        for name in new:
            _put(denoiser, name, former[name])


@contextmanager
def frozen(denoiser: nn.Module) -> Generator[None, None, None]:
    """Keep gradients from the denoiser's own weights meanwhile; give every flag back afterwards."""
    flags = [(parameter, parameter.requires_grad) for parameter in denoiser.parameters()]
    modes = [(module, module.training) for module in denoiser.modules()]
    try:
        denoiser.eval().requires_grad_(False)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode


def _parameter(value: Tensor, like: nn.Parameter) -> nn.Parameter:
    if isinstance(value, nn.Parameter):
        return value
    return nn.Parameter(value.to(like.device, like.dtype), requires_grad=False)


def _put(denoiser: nn.Module, name: str, parameter: nn.Parameter) -> None:
    home, _, leaf = name.rpartition(".")
    setattr(denoiser.get_submodule(home), leaf, parameter)


@dataclass(frozen=True, eq=False)
class WeightErasure:
    """Some weights of the denoiser, replaced.

    Args:
        config: see `Erasure`.
        weights: dotted parameter name to value, on the CPU.
    """

    config: Mapping[str, Json]
    weights: Mapping[str, Tensor]

    @property
    def stored_bytes(self) -> int:
        """Size of the replaced weights, stored whole."""
        return bytes_of(list(self.weights.values()))

    @contextmanager
    def applied(self, pipe: Any) -> Generator[Draw, None, None]:
        """See `Erasure`."""
        with swapped(bare_denoiser(pipe), self.weights):
            yield pipe
