"""One denoiser call in progress: what runs in place of the forward of each site."""

import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from semipermeable.runtime.plans import Plan, Ready
from semipermeable.runtime.sums import accumulate_, products, run_with_weight
from semipermeable.runtime.taps import Forward
from semipermeable.sites import Site

__all__ = ["Call", "TextOutputs"]


class _Kept(NamedTuple):
    """A site's output for a text, and marks of everything it was made from."""

    out: Tensor
    plan: "weakref.ref[Plan]"
    parameters: Mapping[str, Tensor | None]
    marks: tuple[int, int, int, int]

    def is_current(self, text: Tensor, plan: Plan) -> bool:
        """Whether the plan is the same, and neither the text, the base weight nor the output has been written to."""
        # Asked at every step and site; not `layer.weight`, a module's slow look-up of parameters.
        weight = self.parameters.get("weight")
        return weight is not None and self.plan() is plan and self.marks == _marks(text, weight, self.out)


class TextOutputs:
    """Outputs of cross-attention keys and values, kept as long as the text rows they were made from.

    A sampler passes the very same tensor at each step; what depends on nothing else is computed at the first.

    Args:
        most_bytes: for one tensor of text rows; what does not fit is computed at every step.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._kept: Any = WeakTensorKeyDictionary()

    def of(self, text: Tensor) -> "dict[str, _Kept]":
        """Return what is kept for these text rows, by site name."""
        return self._kept.setdefault(text, {})

    def put(self, kept: "dict[str, _Kept]", text: Tensor, site: Site, plan: Plan, out: Tensor) -> None:
        """Keep a site's output for text rows, unless a write to it or its weight would leave no mark."""
        if out.is_inference() or (weight := site.weight).is_inference():
            return
        held = sum(other.out.numel() * other.out.element_size() for other in list(kept.values()))
        if held + out.numel() * out.element_size() <= self._most_bytes or site.name in kept:
            marks = _marks(text, weight, out)
            kept[site.name] = _Kept(out, weakref.ref(plan), site.layer.__dict__["_parameters"], marks)

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()


def _marks(text: Tensor, weight: Tensor, out: Tensor) -> tuple[int, int, int, int]:
    return text._version, weight._version, weight.data_ptr(), out._version


class Call:
    """Runs the sites of one denoiser call.

    Args:
        plan: what each site does.
        texts: outputs that stay the same from step to step.
    """

    def __init__(self, plan: Plan, texts: TextOutputs) -> None:
        self.fired: set[str] = set()
        self._plan = plan
        self._sites = plan.sites
        self._weights = plan.weights
        self._texts = texts
        self._text: Tensor | None = None
        self._kept: dict[str, _Kept] | None = None
        self._shared: tuple[str, Tensor, Tensor] | None = None

    def visit(self, module: nn.Module, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the site's output, with what the membranes add; a module that is no site of ours runs as it is."""
        site = self._sites.get(module)
        if site is None:
            return forward(*args, **kwargs)
        name = site.name
        self.fired.add(name)
        x: Tensor = args[0] if args else next(iter(kwargs.values()))
        if name not in self._plan.texts or not _may_keep(x):
            return self._run(site, x, forward, args, kwargs)
        # All sites of a call that read the prompt read the same tensor: it is looked up once.
        if x is not self._text or self._kept is None:
            self._text, self._kept = x, self._texts.of(x)
        found = self._kept.get(name)
        if found is not None and found.is_current(x, self._plan):
            return found.out
        out = self._run(site, x, forward, args, kwargs)
        self._texts.put(self._kept, x, site, self._plan, out)
        return out

    def _run(self, site: Site, x: Tensor, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        weight = None if self._weights is None else self._weights.get(site.name)
        if weight is not None:
            return self._run_folded(site, x, weight, forward)
        # Nothing is folded, or this site's base weight has just changed: what acts is added beside whatever is there.
        out: Tensor = forward(*args, **kwargs)
        ready = self._plan.ready(site.name, out.shape[0], out.device, out.dtype)
        where, stack = ready.where, ready.stack
        hidden = self._hidden(site, x, ready, out)
        if where is None:
            accumulate_(site.layer, out, hidden, stack.u, stack.gamma)
        elif isinstance(where, slice):
            accumulate_(site.layer, out[where], hidden, stack.u, stack.gamma)
        else:
            # In place, so that the output keeps its memory format: the layers after this one would run other code
            # otherwise, and rows that no membrane acts on would differ in their last bits.
            part = out[where]
            accumulate_(site.layer, part, hidden, stack.u, stack.gamma)
            out.index_copy_(0, where, part)
        return out

    def _run_folded(self, site: Site, x: Tensor, weight: Tensor, forward: Forward) -> Tensor:
        where, _ = self._plan.rows(x.shape[0])
        if where is None:
            return run_with_weight(site.layer, x, weight)
        assert isinstance(where, slice)  # noqa: S101 - `make_plan` folds where rows form two pieces, or one
        folded = run_with_weight(site.layer, x[where], weight)
        if where.start:
            return torch.cat([forward(x[: where.start]), folded])
        return torch.cat([folded, forward(x[where.stop :])])

    def _hidden(self, site: Site, x: Tensor, ready: Ready, out: Tensor) -> Tensor:
        """Return v · x of the active rows; sites that read the same x share one product."""
        if ready.joined is None or ready.group is None:
            return products(site.layer, _chosen(x, ready.where, out.dtype), ready.stack.v, own=ready.stack.own)
        last = self._shared
        if last is None or last[0] != ready.group or last[1] is not x:
            if ready.part.start:
                # The first of the group did not read this x: the product for all would not be used again.
                return products(site.layer, _chosen(x, ready.where, out.dtype), ready.stack.v, own=ready.stack.own)
            hidden = products(site.layer, _chosen(x, ready.where, out.dtype), ready.joined, own=ready.stack.own)
            last = self._shared = (ready.group, x, hidden)
        return last[2][..., ready.part]


def _may_keep(x: Tensor) -> bool:
    """Whether what a site gives for x may be given again at the next step."""
    return not (torch.is_grad_enabled() or x.is_inference() or torch.is_autocast_enabled(x.device.type))


def _chosen(x: Tensor, where: slice | Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return the rows of x that act, in the dtype of the site's output."""
    rows = x if where is None else x[where]
    return rows if rows.dtype is dtype else rows.to(dtype)
