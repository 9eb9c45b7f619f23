"""One denoiser call in progress: what runs in place of the forward of each site."""

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from semipermeable.runtime.paths import Path
from semipermeable.runtime.plans import Plan
from semipermeable.runtime.stacks import Group, Stack
from semipermeable.runtime.sums import accumulate_, products, run_with_weight
from semipermeable.runtime.taps import Forward
from semipermeable.sites import Site

__all__ = ["Call", "TextOutputs"]


class _Kept(NamedTuple):
    """A site's output for a text, and marks of everything it was made from."""

    plan: "weakref.ref[Plan]"
    out: Tensor
    marks: tuple[int, ...]


class TextOutputs:
    """Outputs of cross-attention keys and values, kept as long as the text rows they were made from.

    A sampler passes the very same tensor at each step; what depends on nothing else is computed at the first.

    Args:
        most_bytes: for one tensor of text rows; what does not fit is computed at every step.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._kept: Any = WeakTensorKeyDictionary()

    def get(self, text: Tensor, site: Site, plan: Plan) -> Tensor | None:
        """Return a site's output for these text rows, or None if it is not known or something has changed."""
        kept: _Kept | None = self._kept.get(text, {}).get(site.name)
        if kept is None or kept.plan() is not plan or kept.marks != _marks(text, site, kept.out):
            return None
        return kept.out

    def put(self, text: Tensor, site: Site, plan: Plan, out: Tensor) -> None:
        """Keep a site's output for these text rows."""
        sites: dict[str, _Kept] = self._kept.setdefault(text, {})
        held = sum(kept.out.numel() * kept.out.element_size() for kept in list(sites.values()))
        if held + out.numel() * out.element_size() <= self._most_bytes or site.name in sites:
            sites[site.name] = _Kept(weakref.ref(plan), out, _marks(text, site, out))

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()


def _marks(text: Tensor, site: Site, out: Tensor) -> tuple[int, ...]:
    weight = site.weight
    return text._version, weight._version, weight.data_ptr(), out._version


class Call:
    """Runs the sites of one denoiser call.

    Args:
        plan: what each site does.
        groups: site name to its group.
        texts: outputs that stay the same from step to step, or None not to keep any.
    """

    def __init__(self, plan: Plan, groups: dict[str, Group], texts: TextOutputs | None) -> None:
        self.fired: set[str] = set()
        self._plan = plan
        self._groups = groups
        self._texts = texts
        self._shared: tuple[str, Tensor, Tensor] | None = None

    def visit(self, module: nn.Module, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the site's output, with what the membranes add; a module that is no site of ours runs as it is."""
        site = self._plan.sites.get(module)
        if site is None:
            return forward(*args, **kwargs)
        self.fired.add(site.name)
        x: Tensor = args[0] if args else next(iter(kwargs.values()))
        texts = self._texts if self._keeps(site, x) else None
        if texts is None:
            return self._run(site, x, forward, args, kwargs)
        out = texts.get(x, site, self._plan)
        if out is None:
            out = self._run(site, x, forward, args, kwargs)
            texts.put(x, site, self._plan, out)
        return out

    def _keeps(self, site: Site, x: Tensor) -> bool:
        group = self._groups.get(site.name)
        known = group is not None and group.text and site.module is site.layer and isinstance(site.layer, nn.Linear)
        return (
            known
            and not torch.is_grad_enabled()
            and not x.is_inference()
            and not torch.is_autocast_enabled(x.device.type)
        )

    def _run(self, site: Site, x: Tensor, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        if self._plan.path is Path.FOLDED and self._plan.weights is not None:
            return self._run_folded(site, x, self._plan.weights.on(site.name, x.device), forward)
        out: Tensor = forward(*args, **kwargs)
        stack = self._plan.stack(site.name, out.shape[0], out.device, out.dtype)
        where, _ = self._plan.rows(out.shape[0])
        hidden = self._hidden(site, x, where, stack, out)
        if where is None:
            accumulate_(site.layer, out, hidden, stack.u, stack.gamma)
        elif isinstance(where, slice):
            accumulate_(site.layer, out[where], hidden, stack.u, stack.gamma)
        else:
            # In place, so that the output keeps its memory format: the layers after this one would run other code
            # otherwise, and rows that no membrane acts on would differ in their last bits.
            rows = where.to(out.device)
            part = out[rows]
            accumulate_(site.layer, part, hidden, stack.u, stack.gamma)
            out.index_copy_(0, rows, part)
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

    def _hidden(self, site: Site, x: Tensor, where: slice | Tensor | None, stack: Stack, out: Tensor) -> Tensor:
        """Return v · x of the active rows; sites that read the same x share one product."""
        joined = self._plan.joined(site.name, out.shape[0], out.device, out.dtype)
        if joined is not None:
            group, (v, part) = self._groups[site.name].key, joined
            last = self._shared
            if last is not None and last[0] == group and last[1] is x:
                return last[2][..., part]
            if part.start == 0:
                rows = self._chosen(x, where).to(out.dtype)
                hidden = products(site.layer, rows, v, own=stack.own)
                self._shared = (group, x, hidden)
                return hidden[..., part]
        return products(site.layer, self._chosen(x, where).to(out.dtype), stack.v, own=stack.own)

    @staticmethod
    def _chosen(x: Tensor, where: slice | Tensor | None) -> Tensor:
        if where is None:
            return x
        return x[where] if isinstance(where, slice) else x[where.to(x.device)]
