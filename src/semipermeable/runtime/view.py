"""A pipeline's own view of a denoiser that it may share with others.

The view is a shallow copy: the same class, parameters, buffers, submodules and state-dict keys, but its own `forward`.
A pipeline that holds the view is gated; a sibling that holds the original stays bare; both may run at the same time in
their own threads.
"""

import copy
import functools
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

import torch
from torch import nn

from semipermeable.errors import AttachError
from semipermeable.runtime.twin import compiler_of, is_compiled, uncompiled

__all__ = ["Gate", "gated_view", "hand_back", "pass_name", "refuse_rewritten", "view_owner"]

Gate: TypeAlias = Callable[[tuple[Any, ...], dict[str, Any]], AbstractContextManager[Callable[..., Any] | None]]
"""Given a call's positional and keyword arguments, returns the context in which the call runs; that gives what to call
in place of the denoiser (a compiled one's twin), or None."""
_OWNER = "_semipermeable_owner"
_HOOK = "_semipermeable_hook"
_pass: ContextVar[str | None] = ContextVar("semipermeable_pass", default=None)


def pass_name() -> str | None:
    """Return how the pipeline names the view's present call ("cond", "uncond"), or None where it gives no name.

    Pipelines that guide in separate calls name each for diffusers' caches: `with denoiser.cache_context("cond")`.
    """
    return _pass.get()


def gated_view(denoiser: nn.Module, owner: object, gate: Gate) -> nn.Module:
    """Return a view of `denoiser` whose every call runs inside `gate(args, kwargs)`.

    Args:
        denoiser: the network, as the pipeline holds it: it may be compiled, whole or in parts.
        owner: what `view_owner` shall return for the view.
        gate: given the call's arguments, returns the context in which the call runs.
    """
    view = copy.copy(uncompiled(denoiser))
    compiled = is_compiled(denoiser)
    inner: Callable[..., Any] = denoiser if compiled else denoiser.forward

    @functools.wraps(uncompiled(denoiser).forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            raise AttachError(
                "the denoiser is being compiled with membranes attached; compiled code would not see later "
                "changes of γ. Detach, compile, and attach again."
            )
        with gate(args, kwargs) as stand_in:
            return (inner if stand_in is None else stand_in)(*args, **kwargs)

    object.__setattr__(view, "forward", forward)
    if "_old_forward" in view.__dict__:
        # Offloading hooks are taken off and put on anew after each drawing: what lies under them is the gate.
        object.__setattr__(view, "_old_forward", forward)
    # What was compiled runs its own hooks, within: the view's must not run again around it.
    object.__setattr__(view, "_compiled_call_impl", forward if compiled else None)
    object.__setattr__(view, _OWNER, owner)
    object.__setattr__(view, _HOOK, view.__dict__.get("_hf_hook"))
    if hasattr(denoiser, "cache_context"):
        object.__setattr__(view, "cache_context", _naming(denoiser))
    return view


def hand_back(view: nn.Module, denoiser: nn.Module) -> None:
    """Give a denoiser the offloading hook of accelerate that its view has got in its place, or take one that it lost.

    Args:
        view: from `gated_view`, no longer in the pipeline.
        denoiser: what it was made of.
    """
    own, theirs = uncompiled(denoiser).__dict__, view.__dict__
    hook, run = theirs.get("_hf_hook"), theirs["forward"]
    if hook is theirs[_HOOK] or is_compiled(denoiser):
        return
    if "_hf_hook" in own:
        own.pop("_hf_hook").detach_hook(denoiser)
        own["forward"] = own.pop("_old_forward")
    if hook is not None and isinstance(run, functools.partial):
        own["_hf_hook"], own["_old_forward"] = hook, denoiser.forward
        own["forward"] = functools.update_wrapper(functools.partial(run.func, denoiser), denoiser.forward)


def _naming(denoiser: Any) -> Callable[..., AbstractContextManager[None]]:
    """The denoiser's `cache_context`, which also tells `pass_name` the name."""

    @contextmanager
    def cache_context(name: str, *args: Any, **kwargs: Any) -> Generator[None, None, None]:
        token = _pass.set(name)
        try:
            with denoiser.cache_context(name, *args, **kwargs):
                yield
        finally:
            _pass.reset(token)

    return cache_context


def view_owner(denoiser: object) -> object | None:
    """Return the owner of a view, or None for a plain denoiser."""
    return getattr(denoiser, "__dict__", {}).get(_OWNER)


def refuse_rewritten(denoiser: nn.Module, *, compiled: bool = False) -> None:
    """Refuse a denoiser whose layers no longer run one by one.

    Args:
        denoiser: the network.
        compiled: whether it may be compiled, in a way that can be repeated on a twin.

    Raises:
        AttachError: if it, or a part of it, is compiled or has fused projections.
    """
    adapters: tuple[str, ...] = ()
    for name, module in denoiser.named_modules():
        if "ImageProjection" in type(module).__name__:
            # What an IP-Adapter reads its picture with is fused from the beginning (SD3), and holds no sites.
            adapters = (*adapters, f"{name}.")
        place = f"layer {name!r}" if name else "the denoiser"
        if is_compiled(module) and not (compiled and compiler_of(module) is not None):
            raise AttachError(
                f"{place} is compiled (torch.compile): hooks set now would be bypassed and pictures drawn bare. "
                "Attach to the uncompiled module (`module._orig_mod`)."
            )
        if getattr(module, "fused_projections", False) and not name.startswith(adapters):
            raise AttachError(
                f"{place} has fused query/key/value projections: the sites of a membrane do not run. "
                "Call `pipe.unfuse_qkv_projections()` first."
            )
