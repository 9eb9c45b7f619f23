"""A compiled denoiser's twin: the same network with a side path at every site, compiled once for all strengths.

Compiled code does not see what is set on a module later, so the layers of a compiled denoiser are left alone. Calls in
which something acts go to a twin instead: a copy of the tree of modules that shares every parameter and buffer, whose
sites run a forward that adds Σ_c g_{r,c} u_c (v_c · x_r), and which is compiled with the denoiser's own options,
whole or block by block as that was. u, v and g are inputs of the compiled code: other strengths and other membranes run
the same code. They are padded with zero pairs to a number that only grows, so that code is compiled anew only when more
pairs act than ever before. They are written in place: the compiler takes what hangs on a module for an input whose
address stays, and a recorded CUDA graph reads that address. Calls in which nothing acts run the denoiser's own compiled
code: they have its bits.

Compiled code of other shape rounds differently: a row on which nothing acts, beside one on which something does, agrees
with the compiled base model to rounding.
"""

import functools
import threading
import types
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from semipermeable.errors import AttachError
from semipermeable.rank1 import low_rank_delta
from semipermeable.runtime.plans import Plan
from semipermeable.sites import Site

__all__ = ["Twin", "compiler_of", "is_compiled", "uncompiled"]

_FEWEST = 8
"""Pairs that fit without compiling anew; a matrix of so few rows costs what one of one row costs."""
_GROWTH = 4


def uncompiled(module: nn.Module) -> nn.Module:
    """Return the module inside what `torch.compile(module)` returned, or the module itself."""
    return module.__dict__["_modules"]["_orig_mod"] if type(module).__name__ == "OptimizedModule" else module


def is_compiled(module: nn.Module) -> bool:
    """Whether calling this very module runs compiled code (`torch.compile(module)` or `module.compile()`)."""
    return type(module).__name__ == "OptimizedModule" or module.__dict__.get("_compiled_call_impl") is not None


def compiler_of(module: nn.Module) -> Callable[[Any], Any] | None:
    """Return what compiles a callable as this compiled module was, with its options; None if that cannot be told."""
    if type(module).__name__ == "OptimizedModule":
        return getattr(module, "dynamo_ctx", None)
    # `Module.compile` keeps its options nowhere but in what it made.
    made = module.__dict__.get("_compiled_call_impl")
    if not isinstance(made, types.FunctionType):
        return None
    cells = dict(zip(made.__code__.co_freevars, made.__closure__ or (), strict=True))
    compiler: Any = cells["self"].cell_contents if "self" in cells else None
    return compiler if callable(compiler) else None


class _Board:
    """What all sites of a twin read: g, shape (rows, pairs), fp32."""

    def __init__(self) -> None:
        self.gamma = torch.zeros(1, 1)
        self._held: dict[tuple[torch.Size, torch.device], Tensor] = {}

    def show(self, gamma: Tensor) -> None:
        """Let all sites read these strengths, at the address that earlier ones of their shape had."""
        self.gamma = self._held[gamma.shape, gamma.device] = _written(
            self._held.get((gamma.shape, gamma.device)), gamma
        )


class _Seat:
    """The side path of one site: its module's forward and what acts beside it.

    It is set as an instance's `forward`, which the compiler guards on. It guards on no hook: with hooks it would take
    the bare code for the twin's.
    """

    def __init__(self, module: nn.Module, layer: nn.Module, board: _Board) -> None:
        self.own = module.forward
        self.layer = layer
        self.board = board
        self.fired = False
        self.u = self.v = torch.zeros(0)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the site's output with what acts; traced by the compiler."""
        out: Tensor = self.own(*args, **kwargs)
        x: Tensor = args[0] if args else next(iter(kwargs.values()))
        # Written, never read by the traced code: the compiled code writes it at each call, and nothing depends on it.
        self.fired = True
        gamma = self.board.gamma.to(out.device, out.dtype)
        if gamma.shape[0] != out.shape[0]:
            gamma = gamma.repeat_interleave(out.shape[0] // gamma.shape[0], 0)
        u, v = self.u.to(out.device, out.dtype), self.v.to(out.device, out.dtype)
        return out + low_rank_delta(self.layer, x.to(out.dtype), u, v, gamma)


class Twin:
    """A twin of the denoisers of one pipeline; runs one call at a time.

    Args:
        heads: beginning of the names of sites to the module that the pipeline calls; "" for a single denoiser.
        sites: site name to site, for all sites that may act.

    Raises:
        AttachError: if the denoiser has hooks of diffusers too, which replace forwards by what points to the original.
    """

    def __init__(self, heads: Mapping[str, nn.Module], sites: Mapping[str, Site]) -> None:
        self.names = frozenset(sites)
        self._lock = threading.Lock()
        self._board = _Board()
        self._plan: Plan | None = None
        self._capacity = _FEWEST
        self._originals = [module for head in heads.values() for module in uncompiled(head).modules()]
        self._seen = [_look(module) for module in self._originals]
        copies: dict[nn.Module, nn.Module] = {}
        for head in heads.values():
            _copied(uncompiled(head), copies)
        self._seats: dict[str, _Seat] = {}
        for name, site in sites.items():
            module = copies[site.module]
            seat = self._seats[name] = _Seat(module, copies[site.layer], self._board)
            module.__dict__["forward"] = seat.forward
        self._calls = {prefix: _compiled_alike(head, copies[uncompiled(head)]) for prefix, head in heads.items()}
        for original, module in copies.items():
            if is_compiled(original):
                module.__dict__["_compiled_call_impl"] = _compiled_alike(original, module)

    def is_current(self) -> bool:
        """Whether the denoiser is still what the twin was made from: the same modules, processors, forwards."""
        try:
            return all(look == _look(module) for look, module in zip(self._seen, self._originals, strict=True))
        except RuntimeError:  # a tensor that is not the same one does not compare to a truth value
            return False

    @contextmanager
    def carrying(self, plan: Plan, prefix: str) -> Generator[Callable[..., Any], None, None]:
        """Give what to call in place of the denoiser inside the `with` block.

        Args:
            plan: what acts; all its sites are among `names`.
            prefix: which of the denoisers.
        """
        with self._lock:
            if plan is not self._plan:
                self._load(plan)
            for seat in self._seats.values():
                seat.fired = False
            yield self._calls[prefix]

    def fired(self) -> set[str]:
        """Names of the sites that ran during the last call."""
        return {name for name, seat in self._seats.items() if seat.fired}

    def _load(self, plan: Plan) -> None:
        self._plan = None  # who fails half way leaves a mixture
        ranks = [max(u.shape[1] for u, _ in membrane.pairs.values()) for membrane in plan.membranes]
        begins = [sum(ranks[:column]) for column in range(len(ranks))]
        while self._capacity < sum(ranks):
            self._capacity *= _GROWTH
        owner = torch.tensor([column for column, rank in enumerate(ranks) for _ in range(rank)])
        with torch.inference_mode(mode=False), torch.no_grad():
            gamma = torch.zeros(plan.strengths.shape[0], self._capacity)
            gamma[:, : len(owner)] = plan.strengths[:, owner]
            device = None
            for name, seat in self._seats.items():
                u, v = self._padded(seat, plan, name, begins)
                weight = seat.layer.weight
                place = weight.device if isinstance(weight, Tensor) and weight.device.type != "meta" else u.device
                dtype = weight.dtype if isinstance(weight, Tensor) and weight.is_floating_point() else u.dtype
                seat.u, seat.v = _written(seat.u, u.to(place, dtype)), _written(seat.v, v.to(place, dtype))
                device = place
            self._board.show(gamma.to(device))
        self._plan = plan

    def _padded(self, seat: _Seat, plan: Plan, name: str, begins: list[int]) -> tuple[Tensor, Tensor]:
        shape = _weight_shape(seat.layer)
        u, v = torch.zeros(shape[0], self._capacity), torch.zeros(self._capacity, *shape[1:])
        for pair in plan.pairs.get(name, ()):
            begin = begins[pair.column]
            part = slice(begin, begin + pair.u.shape[1])
            u[:, part], v[part] = pair.u.float(), pair.v.float()
        return u, v


def _written(held: Tensor | None, new: Tensor) -> Tensor:
    """Return the held tensor with the new values, or the new one where it does not fit."""
    if held is None or (held.shape, held.dtype, held.device) != (new.shape, new.dtype, new.device):
        return new
    return held.copy_(new)


def _weight_shape(layer: nn.Module) -> tuple[int, ...]:
    if isinstance(layer, nn.Conv2d):
        return layer.out_channels, layer.in_channels, *layer.kernel_size
    assert isinstance(layer, nn.Linear)  # noqa: S101 - `find_sites` finds nothing else
    return layer.out_features, layer.in_features


def _look(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a copy of a module would copy; compares by identity first."""
    return dict(module.__dict__), dict(module.__dict__["_modules"])


def _copied(module: nn.Module, copies: dict[nn.Module, nn.Module]) -> nn.Module:
    if module in copies:
        return copies[module]
    registry = module.__dict__.get("_diffusers_hook")
    if registry is not None and registry.hooks:
        raise AttachError(
            "the denoiser is compiled and has hooks of diffusers (group offloading, caching), which its twin cannot "
            "have. Beside group offloading do not compile it, or use model offloading; caching leaves out layers that "
            "membranes act on: call its `disable_cache()`."
        )
    copy = object.__new__(type(module))
    copies[module] = copy
    copy.__dict__.update({name: _rebound(value, module, copy) for name, value in module.__dict__.items()})
    copy.__dict__["_modules"] = {
        name: None if child is None else _copied(child, copies) for name, child in module.__dict__["_modules"].items()
    }
    copy.__dict__["_compiled_call_impl"] = None
    return copy


def _rebound(value: Any, module: nn.Module, copy: nn.Module) -> Any:
    """Point to the copy what an offloading hook has put on a module: a method of it, or a partial with it first."""
    if isinstance(value, types.MethodType) and value.__self__ is module:
        return types.MethodType(value.__func__, copy)
    if isinstance(value, functools.partial) and value.args and value.args[0] is module:
        return functools.partial(value.func, copy, *value.args[1:], **value.keywords)
    return value


def _compiled_alike(original: nn.Module, copy: nn.Module) -> Callable[..., Any]:
    """Return what calls a copy in the way in which its original is called."""
    compile_ = compiler_of(original) if is_compiled(original) else None
    if compile_ is None:
        return copy
    if type(original).__name__ == "OptimizedModule":
        return compile_(copy)
    return compile_(copy._call_impl)  # pyright: ignore[reportPrivateUsage]  # what `Module.compile` compiles
