"""Several finished membranes bound to one denoiser.

For row r of one denoiser call and membrane c, the strength g_{r,c} is γ_{r,c} already raised to the membrane's
`gate_power` and multiplied by its strength. Each site adds Σ_c g_{r,c} u_c (v_c · x_r) (SPM, Eq. 9) to the rows in
which some g is not zero; the other rows are not touched. How that is done is chosen per call (`paths`): a call in which
every g is zero runs the base model's own code and no other, also no hook.
"""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from itertools import repeat
from operator import contains
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from semipermeable.errors import AttachError, SiteNotFiredError
from semipermeable.membrane import Membrane
from semipermeable.runtime.calls import Call, TextOutputs
from semipermeable.runtime.folded import moves_weights
from semipermeable.runtime.paths import Path, PathCounter
from semipermeable.runtime.plans import Plan, make_plan
from semipermeable.runtime.stacks import Group, Pair, group_of
from semipermeable.runtime.twin import Twin
from semipermeable.sites import Site, find_sites, resolve_sites

__all__ = ["DEVICE_BYTES", "Binding"]

DEVICE_BYTES = 2 * 2**30
"""Memory on the device for stacked pairs and effective weights, if nothing else is said."""
_TEXT_SHARE = 8
"""One part in so many of it is for keys and values of the prompt."""
_MOST_PLANS = 64


_Asked: TypeAlias = tuple[str, tuple[bool, ...], bool]
"""Beginning of the names of sites, unconditional rows, whether effective weights may be read."""


class _Key(NamedTuple):
    """What a plan was made for; `membranes` by identity, which the plan's pairs keep alive."""

    membranes: tuple[int, ...]
    shape: tuple[int, ...]
    strengths: bytes
    asked: _Asked


class Binding:
    """Membranes bound to a denoiser. Its parameters, buffers, hooks and state-dict keys stay as they are.

    Args:
        denoiser: the network.
        membranes: in the order of the columns of the strengths; all checked before anything else happens.
        fold: whether calls may read effective weights where all rows that act have the same strengths.
        device_bytes: memory on the device for stacked pairs and effective weights; the plans used longest ago go first.
        counter: counts the paths taken; None makes its own.
        heads: the modules that the pipeline calls, by the beginning of the names of their sites, where they may be
            compiled: calls in which something acts then go to a twin. None: the denoiser itself.

    Raises:
        SiteError: if a membrane does not fit the denoiser.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        membranes: Sequence[Membrane],
        *,
        fold: bool = False,
        device_bytes: int = DEVICE_BYTES,
        counter: PathCounter | None = None,
        heads: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self._heads = {"": denoiser} if heads is None else dict(heads)
        modules = [*self._heads.values(), *denoiser.modules()]
        # Looked at again and again: a module keeps its class, but `Module.compile` leaves an attribute.
        self._wrapped = any(type(module).__name__ == "OptimizedModule" for module in modules)
        self._attributes = [module.__dict__ for module in modules]
        self._blocks = [
            module.__dict__
            for module in modules
            if module.__dict__["_modules"] and type(module).forward is not nn.Module.forward
        ]
        self._compiled = self._is_compiled(self._attributes)
        self._twin: Twin | None = None
        self.counter = counter or PathCounter()
        self._fold = fold
        self._device_bytes = device_bytes
        self._known = find_sites(denoiser, inside=())
        self._groups = _groups(denoiser, self._known)
        self._checked: weakref.WeakSet[Membrane] = weakref.WeakSet()
        self._texts = TextOutputs(device_bytes // _TEXT_SHARE)
        self._plans: OrderedDict[_Key, Plan] = OrderedDict()
        self._lock = threading.Lock()
        self._planning = threading.Lock()
        self._num_calls = 0
        self._retired = False
        self._denoiser = denoiser
        self._last: _Last | None = None
        self.membranes = tuple(membranes)
        for membrane in self.membranes:
            self._check(membrane)

    @contextmanager
    def activate(
        self, strengths: Tensor, within: str = "", *, unconditional: tuple[bool, ...] = ()
    ) -> Generator[Callable[..., Any] | None, None, None]:
        """Let the membranes act on the denoiser call made inside the `with` block, in this thread only.

        Args:
            strengths: shape (rows, membranes), fp32; 0 = not at all, 1 = as trained.
            within: beginning of the names of the sites that this call is to run: of one of several denoisers.
            unconditional: see `act`.

        Raises:
            SiteNotFiredError: after the block, if a site of an acting membrane did not run.
        """
        with self.act(self.membranes, strengths, within, unconditional=unconditional) as stand_in:
            yield stand_in

    @contextmanager
    def act(
        self,
        membranes: Sequence[Membrane],
        strengths: Tensor,
        within: str = "",
        *,
        unconditional: tuple[bool, ...] = (),
    ) -> Generator[Callable[..., Any] | None, None, None]:
        """Let any membranes act on the denoiser call made inside the `with` block, in this thread only.

        Args:
            membranes: in the order of the columns of the strengths.
            strengths: shape (rows, membranes), fp32; 0 = not at all, 1 = as trained.
            within: beginning of the names of the sites that this call is to run: of one of several denoisers.
            unconditional: which rows only guide others. A row on which nothing acts has the base model's bits; if all
                such rows are unconditional and many membranes act, the two kinds may run apart, and then they agree
                with the base model to rounding. () promises the bits to every row.

        Yields:
            What to call in place of the denoiser, if it is compiled and something acts; else None.

        Raises:
            SiteError: if a membrane does not fit the denoiser.
            SiteNotFiredError: after the block, if a site of an acting membrane did not run.
        """
        plan = self._plan(membranes, strengths, within, unconditional)
        if plan is None:
            self.counter.add(Path.IDLE)
            yield None
            return
        if not self.hold():
            raise AttachError("these membranes have been detached; attach them again")
        try:
            if self._compiled:
                twin = self._twin_for(plan)
                with twin.carrying(plan, within) as stand_in:
                    yield stand_in
                    fired = twin.fired()
            else:
                call = Call(plan, self._texts)
                with plan.taps.visited_by(call):
                    yield None
                fired = call.fired
            self._verify(plan, fired)
            self.counter.add(plan.path)
        finally:
            with self._lock:
                self._evict()
            self.release()

    def hold(self) -> bool:
        """Keep everything for a call that is being prepared, whatever is removed meanwhile; False if it is too late."""
        with self._lock:
            if self._retired and not self._num_calls:
                return False
            self._num_calls += 1
            return True

    def release(self) -> None:
        """The call that was held for has finished."""
        with self._lock:
            self._num_calls -= 1
            self._free()

    def remove(self) -> None:
        """Free all memory after the calls that are in progress or held have finished, and take none from then on."""
        with self._lock:
            self._retired = True
            self._free()

    def _free(self) -> None:
        """Drop everything once retired and no call is left; the lock is held."""
        if self._retired and not self._num_calls:
            self._plans.clear()
            self._texts.clear()
            self._last = None
            self._twin = None

    def _evict(self) -> None:
        """Drop plans beyond the budget, the oldest first; the lock is held."""
        if len(self._plans) <= 1:
            return
        held = {key: plan.num_bytes for key, plan in self._plans.items()}
        total = sum(held.values())
        while len(self._plans) > 1 and (total > self._device_bytes or len(self._plans) > _MOST_PLANS):
            key, _ = self._plans.popitem(last=False)
            total -= held[key]

    def inherit(self, other: "Binding") -> None:
        """Take over another binding's twin of the same denoiser, so that nothing is compiled anew."""
        self._twin = other._twin

    def _is_compiled(self, attributes: Sequence[Mapping[str, Any]]) -> bool:
        """Whether calling the denoiser, or a part of it, runs compiled code: `twin.is_compiled` of any module."""
        # Hardly any module has the attribute: whether one does is asked of all in one go.
        if self._wrapped or not any(map(contains, attributes, repeat("_compiled_call_impl"))):
            return self._wrapped
        return any(own.get("_compiled_call_impl") is not None for own in attributes)

    def _may_fold(self) -> bool:
        return self._fold and not self._compiled and not torch.is_grad_enabled()

    def _twin_for(self, plan: Plan) -> Twin:
        with self._planning:
            twin = self._twin
            if twin is None or not plan.names <= twin.names or not twin.is_current():
                names = plan.names | (twin.names if twin is not None else frozenset())
                sites = {name: site for name, site in find_sites(self._denoiser, inside=()).items() if name in names}
                twin = self._twin = Twin(self._heads, sites)
            return twin

    def _verify(self, plan: Plan, fired: set[str]) -> None:
        if not plan.names <= fired:
            missing = sorted(plan.names - fired)
            raise SiteNotFiredError(
                f"{len(missing)} of {len(plan.names)} sites never ran, first {missing[0]!r}. Either the pipeline left "
                "the layer out: call the denoiser's `disable_cache()`, pass no `skip_guidance_layers`. Or it was "
                "replaced, fused or compiled after the membranes were attached: detach, undo that, and attach again."
            )

    def _check(self, membrane: Membrane) -> None:
        if membrane not in self._checked:
            resolve_sites(self._denoiser, dict(membrane.pairs), known=self._known)
            self._checked.add(membrane)

    def _plan(
        self, membranes: Sequence[Membrane], strengths: Tensor, within: str, unconditional: tuple[bool, ...]
    ) -> Plan | None:
        """Return what to do, or None if nothing acts."""
        last = self._last
        asked = (within, unconditional, self._may_fold())
        # A sampler asks with the very same table at every step. What is compiled meanwhile is the whole or its blocks;
        # whether one layer is by itself, is looked at once a table.
        if last is not None and last.matches(membranes, strengths, asked) and last.is_current():
            plan = last.plan
            if plan is None or self._is_compiled(self._blocks) is self._compiled:
                return plan
        table: Any = strengths.detach().float().cpu().numpy()
        acting = table.any(0).nonzero()[0].tolist()
        plan = None
        if acting:
            self._compiled = self._is_compiled(self._attributes)
            asked = (within, unconditional, self._may_fold())
            with self._planning:
                plan = self._planned([membranes[c] for c in acting], table[:, acting], asked)
        if not strengths.is_inference():
            self._last = _Last(weakref.ref(strengths), strengths._version, membranes, asked, plan)
        return plan

    def _planned(self, acting: Sequence[Membrane], table: Any, asked: _Asked) -> Plan | None:
        within, unconditional, may_fold = asked
        key = _Key(tuple(map(id, acting)), table.shape, table.tobytes(), asked)
        with self._lock:
            plan = self._plans.pop(key, None)
        if plan is None or (plan.weights is not None and not plan.weights.current()):
            for membrane in acting:
                self._check(membrane)
            pairs: dict[str, list[Pair]] = {}
            for column, membrane in enumerate(acting):
                for name, (u, v) in membrane.pairs.items():
                    if name.startswith(within):
                        pairs.setdefault(name, []).append(Pair(column, u, v))
            sites = [site for name, site in self._known.items() if name in pairs]
            if not sites:
                return None
            most = self._device_bytes if may_fold and not moves_weights(self._denoiser) else 0
            strengths = torch.tensor(table)
            plan = make_plan(
                sites, pairs, strengths, self._groups, acting, most_fold_bytes=most, unconditional=unconditional
            )
        with self._lock:
            self._plans[key] = plan
        return plan


class _Last(NamedTuple):
    """The last table of strengths asked with, and its plan."""

    strengths: "weakref.ref[Tensor]"
    version: int
    membranes: Sequence[Membrane]
    asked: _Asked
    plan: Plan | None

    def matches(self, membranes: Sequence[Membrane], strengths: Tensor, asked: _Asked) -> bool:
        """Whether the question is the same, by identity."""
        same = self.strengths() is strengths and self.membranes is membranes and self.asked == asked
        return same and self.version == strengths._version

    def is_current(self) -> bool:
        """Whether no site has been found to have other weights than the plan was made from."""
        return self.plan is None or self.plan.weights is None or not self.plan.weights.stale


def _groups(denoiser: nn.Module, known: Mapping[str, Site]) -> dict[str, Group]:
    found: dict[str, Group] = {}
    for name in known:
        group = group_of(name, denoiser.get_submodule(name.rpartition(".")[0]))
        if group is not None:
            found[name] = group
    return found
