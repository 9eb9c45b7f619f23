"""Standing in for the forward of a site, only while some call needs it.

A tap is set as the instance attribute `forward` of a site's module when a call that acts begins, and taken away when
the last such call ends. Between such calls, and in calls in which no membrane acts, the modules are exactly as
they were: nothing runs that would not run without this package. While a tap is set, a call of another thread that is
not being visited (a bare sibling that shares the module) goes straight through it.

All of this happens at every step and at every site, when the layers' weights have driven everything else out of the
processor's caches: it costs as much as the number of objects of each site that it touches. A site whose output follows
from its input and little else (`Quick`) therefore has something smaller than a tap set in front of it.
"""

import functools
import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

__all__ = ["Forward", "Quick", "Taps", "Visitor", "is_plain"]


class Forward(Protocol):
    """A module's forward."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it."""
        ...


class Visitor(Protocol):
    """What runs in place of a tapped module's forward."""

    fired: set[str]
    """Names of the sites that have run."""

    def visit(self, module: nn.Module, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the module's output; `forward` is its own."""
        ...


class Quick(NamedTuple):
    """What is tried at a module before the visitor is asked.

    Args:
        run: given `about`, the visitor and the module's only argument, returns the module's output, or None if the
            visitor is to be asked. A function that modules share, not a closure of each.
        about: all that is to be known about the module.
    """

    run: Callable[[Any, Visitor, Tensor], Tensor | None]
    about: tuple[Any, ...]


class _Visit(NamedTuple):
    """The visit in progress in this thread, and whose `Quick` may run in it."""

    visitor: Visitor
    quick: object | None


_current: ContextVar[_Visit | None] = ContextVar("semipermeable_visit", default=None)
# Siblings share modules, hence taps: one lock for all, held only to set and take away.
_lock = threading.Lock()


class _Tap:
    """Stands in for one module's forward; `users` calls need it."""

    __slots__ = ("attributes", "module", "own", "users")

    def __init__(self, module: nn.Module, own: Forward | None) -> None:
        self.module = module
        self.attributes = module.__dict__
        self.own = own
        self.users = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        visit = _current.get()
        # Without users it is only what somebody has wrapped: the tap around that one is visited.
        if visit is None or not self.users:
            return self.forward(*args, **kwargs)
        return visit.visitor.visit(self.module, self.forward, args, kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run what the module would run without this tap."""
        own = self.own
        return type(self.module).forward(self.module, *args, **kwargs) if own is None else own(*args, **kwargs)


def _try_quick(tap: _Tap, owner: object, quick: Quick, *args: Any, **kwargs: Any) -> Any:
    """What is set in front of a tap, as a `functools.partial`: `quick` in calls of its owner, the tap in all others."""
    visit = _current.get()
    if visit is not None and visit.quick is owner and len(args) == 1 and not kwargs:
        run, about = quick
        out = run(about, visit.visitor, args[0])
        if out is not None:
            return out
    return tap(*args, **kwargs)


def _tap_of(held: object) -> _Tap | None:
    """Return the tap that an instance attribute `forward` is, or is in front of; None if it is somebody else's."""
    if type(held) is functools.partial and held.func is _try_quick:
        held = held.args[0]
    return held if type(held) is _Tap else None


def is_plain(module: nn.Module) -> bool:
    """Whether a module runs its class's own forward, a tap of ours apart (offloading replaces it per instance)."""
    held = module.__dict__.get("forward")
    if held is None:
        return True
    tap = _tap_of(held)
    return tap is not None and tap.own is None


class Taps:
    """The taps of some modules, made once and set by every call: a sampler makes the same call at every step.

    Args:
        modules: what is to be tapped.
        quick: what is tried before the visitor is asked, for some of them, where the module runs its class's forward.
    """

    def __init__(self, modules: Iterable[nn.Module], quick: Mapping[nn.Module, Quick] | None = None) -> None:
        self._owner = object()
        self._taps: list[tuple[dict[str, Any], Callable[..., Any], _Tap]] = []
        for module in modules:
            tap = _Tap(module, None)
            found = quick.get(module) if quick else None
            front = tap if found is None else functools.partial(_try_quick, tap, self._owner, found)
            self._taps.append((tap.attributes, front, tap))

    @contextmanager
    def visited_by(self, visitor: Visitor) -> Generator[None, None, None]:
        """Let `visitor` run in place of the modules' forwards inside the `with` block, in this thread only."""
        theirs: dict[_Tap, _Tap] = {}
        with _lock:
            for attributes, front, tap in self._taps:
                if "forward" not in attributes:
                    attributes["forward"] = front
                    tap.users += 1
                else:
                    # Another call's tap, or a new one around what was put there meanwhile.
                    theirs[tap] = _use(attributes, tap.module)
        # A forward that was replaced may hold what we had set there before: then no module is run past its tap.
        token = _current.set(_Visit(visitor, None if theirs else self._owner))
        try:
            yield
        finally:
            _current.reset(token)
            with _lock:
                for attributes, front, tap in self._taps:
                    if tap in theirs:
                        continue
                    tap.users -= 1
                    # Who replaced the forward meanwhile keeps theirs; the tap inside it then only passes calls on.
                    if not tap.users and attributes.get("forward") is front:
                        del attributes["forward"]
                for tap in theirs.values():
                    tap.users -= 1
                    if not tap.users:
                        _take_away(tap)


def _use(attributes: dict[str, Any], module: nn.Module) -> _Tap:
    """Use the tap that stands in for a module whose forward is replaced: another call's, or a new one around that."""
    held = attributes["forward"]
    tap = _tap_of(held)
    if tap is None:
        # Whoever replaced the forward may have kept a tap of ours inside: that one must not be set around itself.
        tap = attributes["forward"] = _Tap(module, held)
    tap.users += 1
    return tap


def _take_away(tap: _Tap) -> None:
    if _tap_of(tap.attributes.get("forward")) is not tap:
        return
    if tap.own is None:
        del tap.attributes["forward"]
    else:
        tap.attributes["forward"] = tap.own
