"""Attach membranes to a pipeline, gated per prompt.

    with attach(pipe, ["cat.safetensors"]) as guard:
        images = pipe(["a neon icon of a cat", "a neon icon of a dog"]).images
    print(guard.trace)

The pipeline receives a view of its denoiser and a watched `encode_prompt`; nothing else changes, and `detach` puts both
back. Siblings that share the denoiser stay bare. One attachment a pipeline; several membranes add up exactly.

Siblings may run at the same time, each in its thread, if each has its own scheduler and its own copy of the tokenizer:
both keep state between calls, attached or not (a fast tokenizer its padding).
"""

import functools
import os
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, cast

from torch import Tensor

from semipermeable.equip.bank import Bank, BankGate
from semipermeable.equip.gating import OnUnknown, RowGate, strengths_for
from semipermeable.equip.given import given_to, giving
from semipermeable.errors import AttachError, PermeabilityError
from semipermeable.files.foreign import resolve_foreign
from semipermeable.hosts import Host, host_for, together
from semipermeable.hosts.parts import weights_hash
from semipermeable.membrane import Membrane
from semipermeable.permeability import PerConcept, Permeability, Trace, resolve
from semipermeable.runtime import (
    Binding,
    PathCounter,
    PathCounts,
    PromptBook,
    gated_view,
    hand_back,
    refuse_rewritten,
    view_owner,
)
from semipermeable.zoo.shipped import load_membrane, shipped_name

__all__ = ["Attachment", "MembraneLike", "PermeabilityLike", "attach", "read_membranes"]

MembraneLike = Membrane | str | os.PathLike[str]
_ONE = (Membrane, str, os.PathLike)
PermeabilityLike = str | float | Mapping[str, float] | Permeability


class Attachment:
    """Membranes in a pipeline; made by `attach`. Use it as a context manager or call `detach`.

    Attributes:
        trace: γ of every prompt and concept with its reason; prints as a table.
    """

    def __init__(
        self,
        pipe: Any,
        membranes: Sequence[Membrane] | Bank,
        rule: Permeability,
        strength: float | Mapping[str, float],
        on_unknown: OnUnknown,
    ) -> None:
        self._host = host_for(pipe)
        self._pipe = pipe
        self._rule = rule
        self._strength = strength
        self._on_unknown: OnUnknown = on_unknown
        self._book = PromptBook()
        self._lock = threading.Lock()
        self._changing = threading.RLock()  # never asked for by a call: one may wait for what another thread adds
        self.trace = Trace()
        self._counter = PathCounter()
        self._bank = membranes if isinstance(membranes, Bank) else None
        self._originals = self._host.denoisers
        self._refuse()
        self._original = together(self._originals)
        self._gate, self._binding = self._prepare(membranes)
        self._views = {
            name: gated_view(module, self, functools.partial(self._gated, name))
            for name, module in self._originals.items()
        }
        self._had_own_encode = self._host.encode_name in vars(pipe)
        self._encode = getattr(pipe, self._host.encode_name)
        setattr(pipe, self._host.encode_name, self._watched(self._encode))
        for name, view in self._views.items():
            setattr(pipe, name, view)
        self._attached = True

    @property
    def membranes(self) -> tuple[Membrane, ...]:
        """The membranes in force; of a bank none, since they are read when a prompt opens them."""
        return self._binding.membranes

    @property
    def paths(self) -> PathCounts:
        """How many denoiser calls ran idle, folded and mixed (docs/bank.md)."""
        return self._counter.counts

    @property
    def attached(self) -> bool:
        """Whether the pipeline still holds these membranes."""
        return self._attached

    def add(self, membrane: MembraneLike) -> None:
        """Add a membrane; it acts from the next denoiser call on.

        Raises:
            AttachError: if already detached, or a membrane of that name is attached.
            SiteError: if it does not fit; the others stay as they were.
        """
        with self._changing:
            self._require_attached()
            if self._bank is None:
                self._replace([*self.membranes, *read_membranes(membrane, self._original)])
            elif isinstance(membrane, Membrane) or shipped_name(membrane) is None:
                self._bank.add(membrane)
            else:
                self._bank.add(read_membranes(membrane, self._original)[0])

    def remove(self, name: str) -> None:
        """Remove the membrane of the concept called `name`.

        Raises:
            AttachError: if there is none.
        """
        with self._changing:
            self._require_attached()
            if self._bank is not None:
                self._bank.remove(name)
                return
            kept = [m for m in self.membranes if m.name != name]
            if len(kept) == len(self.membranes):
                names = ", ".join(repr(m.name) for m in self.membranes) or "none"
                raise AttachError(f"no membrane called {name!r} is attached; attached: {names}")
            self._replace(kept)

    @contextmanager
    def given(self, strengths: Tensor) -> Generator[None, None, None]:
        """Let this thread's calls inside the block use these strengths, whatever the rows' texts; nothing is traced.

        Args:
            strengths: γ to the power of the membrane's `gate_power`, times its strength, of every conditional row of a
                call: shape (rows, membranes), columns in the order of `membranes`. What is added or removed inside the
                block changes nothing in it.

        Raises:
            AttachError: if the shape does not fit the call, or no call took them: then the pictures are bare.
        """
        self._require_attached()
        with giving(self, strengths, self.membranes):
            yield

    def detach(self) -> None:
        """Give the pipeline its own denoiser back, bit for bit. Calling it again does nothing."""
        with self._changing:
            self._detach()

    def _detach(self) -> None:
        if not self._attached:
            return
        self._attached = False
        for name, view in self._views.items():
            if getattr(self._pipe, name) is view:
                setattr(self._pipe, name, self._originals[name])
                hand_back(view, self._originals[name])
        if self._had_own_encode:
            setattr(self._pipe, self._host.encode_name, self._encode)
        else:
            vars(self._pipe).pop(self._host.encode_name, None)
        self._binding.remove()

    def __enter__(self) -> "Attachment":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.detach()

    def __repr__(self) -> str:
        names = repr(self._bank) if self._bank is not None else ", ".join(m.name for m in self.membranes)
        return f"Attachment([{names}], {'attached' if self._attached else 'detached'})"

    def _require_attached(self) -> None:
        if not self._attached:
            raise AttachError("this attachment has been detached; call attach again")

    def _refuse(self) -> None:
        for denoiser in self._originals.values():
            owner = view_owner(denoiser)
            if owner is not None:
                raise AttachError(
                    f"this pipeline already holds {owner!r}; use its .add() and .remove(), or .detach() it first"
                )
            refuse_rewritten(denoiser, compiled=True)

    def _prepare(self, membranes: Sequence[Membrane] | Bank) -> tuple[RowGate | BankGate, Binding]:
        if isinstance(membranes, Bank):
            told = (membranes, self._rule, self._strength, self._on_unknown, self.trace)
            bank_gate = BankGate(self._host, self._original, *told)
            return bank_gate, self._bound([])
        names = [m.name for m in membranes]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise AttachError(f"two membranes erase {twice[0]!r}; attach one, or rename a concept")
        if isinstance(self._rule, PerConcept):
            unknown = sorted(set(self._rule.names) - set(names))
            if unknown and not self._is_live():
                raise PermeabilityError(
                    f"permeability names {unknown[0]!r}, which is not attached; attached: {', '.join(names) or 'none'}"
                )
        strength = strengths_for(membranes, self._known_strength(names))
        gate = RowGate(self._host, membranes, self._rule, strength, self._on_unknown, self.trace)
        return gate, self._bound(membranes)

    def _bound(self, membranes: Sequence[Membrane]) -> Binding:
        heads = {self._prefix(name): module for name, module in self._originals.items()}
        return Binding(self._original, membranes, fold=True, counter=self._counter, heads=heads)

    def _prefix(self, name: str) -> str:
        """How the names of a denoiser's sites begin."""
        return f"{name}." if len(self._originals) > 1 else ""

    def _is_live(self) -> bool:
        return getattr(self, "_attached", False)

    def _known_strength(self, names: Sequence[str]) -> float | Mapping[str, float]:
        if self._is_live() and isinstance(self._strength, Mapping):
            return {name: factor for name, factor in self._strength.items() if name in names}
        return self._strength

    def _replace(self, membranes: Sequence[Membrane]) -> None:
        gate, binding = self._prepare(membranes)
        binding.inherit(self._binding)
        with self._lock:
            old = self._binding
            self._gate, self._binding = gate, binding
        old.remove()

    def _watched(self, encode: Any) -> Any:
        @functools.wraps(encode)
        def watched(*args: Any, **kwargs: Any) -> Any:
            result, known, passed = self._host.observe(encode, args, kwargs)
            given = [self._book.read(source) for source, _, _ in passed]
            for rows, texts, role in known:
                self._book.write(rows, texts, role)
            for entries, (_, rows, role) in zip(given, passed, strict=True):
                repeats = len(rows) // max(len(entries), 1)
                for index, entry in enumerate(entries):
                    if entry is not None:
                        self._book.write(rows[index * repeats : (index + 1) * repeats], [entry.text], role)
            return result

        return watched

    @contextmanager
    def _gated(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Generator[Callable[..., Any] | None, None, None]:
        with self._lock:
            gate, binding = self._gate, self._binding
            held = binding.hold()  # what is added or removed while the gate decides is for the next call
        try:
            rows = self._host.call_rows(args, kwargs)
            given = given_to(self)
            if given is not None:
                membranes, strengths = given.membranes, given.spread(rows.conditional)
            else:
                membranes, strengths = gate.select(self._book.read(rows.text), rows.conditional, named=rows.named)
            unconditional = tuple(not conditional for conditional in rows.conditional)
            with binding.act(membranes, strengths, self._prefix(name), unconditional=unconditional) as stand_in:
                yield stand_in
        finally:
            if held:
                binding.release()


def read_membranes(membranes: MembraneLike | Sequence[MembraneLike], denoiser: Any) -> list[Membrane]:
    """Load paths, and resolve the site names of other formats against a denoiser.

    Args:
        membranes: one or several membranes, paths, or names `zoo:CONCEPT` of membranes that come with the package.
        denoiser: the network they are meant for.

    Raises:
        UnknownNameError: if no membrane of a name comes with the package.
        AttachError: if one that does was named, and the denoiser has other weights than the one it was made on; or if
            something is neither.
        MembraneFileError: if a file cannot be read.
    """
    several = _listed(membranes)
    loaded = [m if isinstance(m, Membrane) else load_membrane(m) for m in several]
    pairs = zip(loaded, several, strict=True)
    shipped = [m for m, given in pairs if not isinstance(given, Membrane) and shipped_name(given) is not None]
    _refuse_other_model(shipped, denoiser)
    return [resolve_foreign(m, denoiser) if m.foreign_names else m for m in loaded]


def _listed(membranes: Any) -> list[MembraneLike]:
    several: list[Any] = [membranes]
    if isinstance(membranes, Iterable) and not isinstance(membranes, _ONE):
        several = list(cast("Iterable[Any]", membranes))
    for given in several:
        if not isinstance(given, _ONE):
            raise AttachError(f"membranes are Membrane objects, paths, or names zoo:CONCEPT; found {given!r}")
    return several


def _refuse_other_model(shipped: Sequence[Membrane], denoiser: Any) -> None:
    found = weights_hash(denoiser) if shipped else ""
    for membrane in shipped:
        made_on = membrane.provenance
        if made_on.base_hash != found:
            raise AttachError(
                f"zoo:{membrane.name} was made on {made_on.base_model}, denoiser {made_on.base_hash[:12]}…, and this "
                f"denoiser is {found[:12]}…; make one with `spm erase`, or attach "
                f"spm.zoo.membrane({membrane.name!r}) to use it all the same"
            )


def attach(
    pipe: Any,
    membranes: MembraneLike | Sequence[MembraneLike] | Bank,
    permeability: PermeabilityLike = "transport",
    *,
    strength: float | Mapping[str, float] = 1.0,
    on_unknown: OnUnknown = "open",
) -> Attachment:
    """Attach membranes to a diffusers pipeline; every later call of it is gated per prompt.

    Args:
        pipe: a loaded pipeline of a supported family.
        membranes: membranes, paths of membrane files, or names such as "zoo:cat" of those that come with the package
            (docs/zoo.md), one or several; or a bank of thousands (docs/bank.md).
        permeability: "transport" (calibrated, default), "paper" (SPM Eq. 10, 11), "open", "closed", a number in [0, 1],
            a mapping from concept name to such a number, or an object with the `Permeability` protocol.
        strength: multiplies γ; a number or a mapping from concept name; may exceed 1 or be negative.
        on_unknown: for conditional rows given as embeddings that this pipeline did not encode while attached.

    Returns:
        The attachment: a context manager with `.detach()`, `.add()`, `.remove()` and `.trace`.

    Raises:
        ArchitectureError: if no host supports the pipeline.
        AttachError: if it already holds an attachment, has fused projections, or is compiled in a way that cannot be
            repeated (`torch.compile` and `compile` of diffusers can).
        SiteError: if a membrane does not fit.
        PermeabilityError: if the rule, a name in it, or a strength is not usable.
    """
    if on_unknown not in ("open", "closed", "error"):
        raise PermeabilityError(f'on_unknown must be "open", "closed" or "error", found {on_unknown!r}')
    host: Host = host_for(pipe)
    rule = resolve(permeability)
    several = membranes if isinstance(membranes, Bank) else read_membranes(membranes, host.denoiser)
    return Attachment(pipe, several, rule, strength, on_unknown)
