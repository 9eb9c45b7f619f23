"""Several finished membranes bound to one denoiser.

For row r of one denoiser call and membrane c, the strength g_{r,c} is γ_{r,c} already raised to the membrane's
`gate_power` and multiplied by its strength. Each site adds Σ_c g_{r,c} u_c (v_c · x_r) (SPM, Eq. 9) to the rows in
which some g is not zero, in one product over the membranes that act; the other rows are not touched, and a call in
which every g is zero runs the base model's own code.
"""

import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from semipermeable.errors import AttachError, SiteNotFiredError
from semipermeable.membrane import Membrane
from semipermeable.rank1 import low_rank_delta
from semipermeable.sites import Site, resolve_sites

__all__ = ["Binding"]

_NUM_CACHED_STACKS = 8


class _Stack(NamedTuple):
    """Pairs of the acting membranes at one site: u (out, K), v (K, in, ...), owner (K,) = column of each pair in g."""

    u: Tensor
    v: Tensor
    owner: Tensor


class _Call:
    """One denoiser call in progress: whose it is, the strengths, and which sites have run."""

    def __init__(self, owner: "Binding", strengths: Tensor, acting: tuple[int, ...]) -> None:
        self.owner = owner
        self.strengths = strengths
        self.acting = acting
        self.fired: set[str] = set()
        self._prepared: dict[tuple[int, torch.device, torch.dtype], tuple[Tensor | None, Tensor]] = {}

    def prepared(self, num_rows: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor | None, Tensor]:
        """Return (active row indices, or None for all; their strengths in `dtype`), for a site that sees `num_rows`."""
        key = (num_rows, device, dtype)
        if key not in self._prepared:
            strengths = self.strengths
            if num_rows != strengths.shape[0]:
                if num_rows % strengths.shape[0]:
                    raise AttachError(
                        f"a site saw {num_rows} rows while the denoiser was called with {strengths.shape[0]}; "
                        "this denoiser mixes rows in a way no host describes"
                    )
                strengths = strengths.repeat_interleave(num_rows // strengths.shape[0], 0)
            active = (strengths != 0).any(1)
            rows = None if bool(active.all()) else active.nonzero()[:, 0]
            chosen = strengths if rows is None else strengths[rows]
            moved = None if rows is None else rows.to(device)
            self._prepared[key] = (moved, chosen.to(device=device, dtype=dtype))
        return self._prepared[key]


_current: ContextVar[_Call | None] = ContextVar("semipermeable_call", default=None)


class Binding:
    """Membranes bound to a denoiser by forward hooks on their sites.

    Args:
        denoiser: the network; its parameters, buffers and state-dict keys stay as they are.
        membranes: in the order of the columns of the strengths; all checked before the first hook is set.

    Raises:
        SiteError: if a membrane does not fit the denoiser.
    """

    def __init__(self, denoiser: nn.Module, membranes: Sequence[Membrane]) -> None:
        self.membranes = tuple(membranes)
        self._site_names = tuple(frozenset(m.pairs) for m in self.membranes)
        sites: dict[str, Site] = {}
        for membrane in self.membranes:
            sites.update(resolve_sites(denoiser, dict(membrane.pairs)))
        self._sites = sites
        self._stacks: dict[tuple[str, tuple[int, ...], torch.device, torch.dtype], _Stack] = {}
        self._lock = threading.Lock()
        self._num_calls = 0
        self._retired = False
        self._handles = [
            site.module.register_forward_hook(self._hook_for(site), with_kwargs=True) for site in sites.values()
        ]

    @contextmanager
    def activate(self, strengths: Tensor) -> Generator[None, None, None]:
        """Let the membranes act on the denoiser call made inside the `with` block, in this thread only.

        Args:
            strengths: shape (rows, membranes), fp32; 0 = not at all, 1 = as trained.

        Raises:
            SiteNotFiredError: after the block, if a site of an acting membrane did not run.
        """
        acting = tuple((strengths != 0).any(0).nonzero()[:, 0].tolist())
        if not acting:
            yield
            return
        with self._lock:
            if self._retired:
                raise AttachError("these membranes have been detached while a call was being prepared; call again")
            self._num_calls += 1
        call = _Call(self, strengths[:, list(acting)].float(), acting)
        token = _current.set(call)
        try:
            yield
            self._verify(call)
        finally:
            _current.reset(token)
            with self._lock:
                self._num_calls -= 1
                if self._retired and not self._num_calls:
                    self._drop_hooks()

    def remove(self) -> None:
        """Take the hooks off, after the calls in progress in other threads have finished."""
        with self._lock:
            self._retired = True
            if not self._num_calls:
                self._drop_hooks()

    def _drop_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._stacks.clear()

    def _verify(self, call: _Call) -> None:
        expected = frozenset[str]().union(*(self._site_names[c] for c in call.acting))
        missing = sorted(expected - call.fired)
        if missing:
            raise SiteNotFiredError(
                f"{len(missing)} of {len(expected)} sites never ran, first {missing[0]!r}: the layer was replaced, "
                "fused or compiled after the membranes were attached. Detach, undo that, and attach again."
            )

    def _hook_for(self, site: Site) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
            call = _current.get()
            if call is None or call.owner is not self:
                return None
            call.fired.add(site.name)
            x = args[0] if args else next(iter(kwargs.values()))
            return self._add(call, site, x, output)

        return hook

    def _add(self, call: _Call, site: Site, x: Tensor, output: Tensor) -> Tensor | None:
        stack = self._stack(site.name, call.acting, output.device, output.dtype)
        if stack is None:
            return None
        rows, strengths = call.prepared(output.shape[0], output.device, output.dtype)
        x = x.to(output.dtype)
        gamma = strengths[:, stack.owner]
        if rows is None:
            return output + low_rank_delta(site.layer, x, stack.u, stack.v, gamma)
        # clone keeps the memory format, which an out-of-place index_add does not: the layers after this one would run
        # other code, and rows that no membrane acts on would differ in their last bits.
        return output.clone().index_add_(0, rows, low_rank_delta(site.layer, x[rows], stack.u, stack.v, gamma))

    def _stack(self, name: str, acting: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> _Stack | None:
        key = (name, acting, device, dtype)
        stack = self._stacks.get(key)
        if stack is not None:
            return stack
        chosen = [
            (column, *self.membranes[c].pairs[name]) for column, c in enumerate(acting) if name in self._site_names[c]
        ]
        if not chosen:
            return None
        stack = _Stack(
            torch.cat([u.to(device=device, dtype=dtype) for _, u, _ in chosen], 1),
            torch.cat([v.to(device=device, dtype=dtype) for _, _, v in chosen], 0),
            torch.tensor([column for column, u, _ in chosen for _ in range(u.shape[1])], device=device),
        )
        while len(self._stacks) >= _NUM_CACHED_STACKS * len(self._sites):
            self._stacks.pop(next(iter(self._stacks)), None)
        self._stacks[key] = stack
        return stack
