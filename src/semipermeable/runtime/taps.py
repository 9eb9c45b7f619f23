"""Standing in for the forward of a site, only while some call needs it.

A tap is set as the instance attribute `forward` of a site's module when a call that acts begins, and taken away when
the last such call ends. Between such calls, and in calls in which no membrane acts, the modules are exactly as
they were: nothing runs that would not run without this package. While a tap is set, a call of another thread that is
not being visited (a bare sibling that shares the module) goes straight through it.
"""

import threading
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from torch import nn

__all__ = ["Forward", "Taps", "Visitor", "is_plain"]


class Forward(Protocol):
    """A module's forward."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it."""
        ...


class Visitor(Protocol):
    """What runs in place of a tapped module's forward."""

    def visit(self, module: nn.Module, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the module's output; `forward` is its own."""
        ...


_current: ContextVar[Visitor | None] = ContextVar("semipermeable_visitor", default=None)
# Siblings share modules, hence taps: one lock for all, held only to set and take away.
_lock = threading.Lock()


class _Tap:
    """Stands in for one module's forward; `users` calls need it."""

    __slots__ = ("attributes", "module", "own", "users")

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.attributes = module.__dict__
        self.own: Forward | None = self.attributes.get("forward")
        self.users = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        visitor = _current.get()
        # Without users it is only what somebody has wrapped: the tap around that one is visited.
        if visitor is None or not self.users:
            return self.forward(*args, **kwargs)
        return visitor.visit(self.module, self.forward, args, kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run what the module would run without this tap."""
        own = self.own
        return type(self.module).forward(self.module, *args, **kwargs) if own is None else own(*args, **kwargs)


def is_plain(module: nn.Module) -> bool:
    """Whether a module runs its class's own forward, a tap of ours apart (offloading replaces it per instance)."""
    own = module.__dict__.get("forward")
    return own is None or (isinstance(own, _Tap) and own.own is None)


class Taps:
    """The taps of some modules, made once and set by every call: a sampler makes the same call at every step.

    Args:
        modules: what is to be tapped.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._taps = tuple(_Tap(module) for module in modules)

    @contextmanager
    def visited_by(self, visitor: Visitor) -> Generator[None, None, None]:
        """Let `visitor` run in place of the modules' forwards inside the `with` block, in this thread only."""
        taps: list[_Tap] = []
        with _lock:
            for tap in self._taps:
                # Done at every step, for every site, when what it touches has left the processor's caches.
                if tap.own is None and "forward" not in tap.attributes:
                    tap.attributes["forward"] = tap
                else:
                    tap = _set(tap)  # Another call's tap, or one around what was put there meanwhile.
                tap.users += 1
                taps.append(tap)
        token = _current.set(visitor)
        try:
            yield
        finally:
            _current.reset(token)
            with _lock:
                for tap in taps:
                    tap.users -= 1
                    if not tap.users:
                        _take_away(tap)


def _set(tap: _Tap) -> _Tap:
    """Return the tap that stands in for a module's forward from now on: this one, or another call's."""
    held = tap.attributes.get("forward")
    if type(held) is _Tap:
        return held
    # Whoever replaced the forward may have kept a tap of ours inside: that one must not be set around itself.
    tap = _Tap(tap.module)
    tap.attributes["forward"] = tap
    return tap


def _take_away(tap: _Tap) -> None:
    # Who replaced the forward meanwhile keeps theirs; the tap inside it then only passes calls on.
    if tap.attributes.get("forward") is not tap:
        return
    if tap.own is None:
        del tap.attributes["forward"]
    else:
        tap.attributes["forward"] = tap.own
