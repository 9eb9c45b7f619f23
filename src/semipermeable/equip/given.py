"""Strengths given for the rows of a call, in place of those that a rule reads from the rows' texts.

A server decides γ per request: two rows with the same text may stand under different policies, so the text of a row
does not say which membranes act on it. The strengths belong to the calls made inside one `with` block in one thread.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

import torch
from torch import Tensor

from semipermeable.errors import AttachError
from semipermeable.membrane import Membrane

__all__ = ["GivenStrengths", "given_to", "giving"]


class GivenStrengths:
    """Strengths for the conditional rows of each denoiser call.

    Args:
        membranes: what they were given for, whatever is attached meanwhile.
        strengths: shape (conditional rows, membranes), fp32.
    """

    def __init__(self, membranes: Sequence[Membrane], strengths: Tensor) -> None:
        self.membranes = membranes
        self._strengths = strengths
        self._spread: dict[tuple[bool, ...], Tensor] = {}

    @property
    def used(self) -> bool:
        """Whether a call with conditional rows has taken them."""
        return any(any(pattern) for pattern in self._spread)

    def spread(self, conditional: Sequence[bool]) -> Tensor:
        """Return the strengths of all rows of a call, zero on rows that are not conditional.

        The same pattern gives the very same tensor, by which the layers below know that nothing has changed.

        Raises:
            AttachError: if the call has another number of conditional rows.
        """
        pattern = tuple(conditional)
        if pattern not in self._spread:
            rows = self._strengths.new_zeros(len(pattern), self._strengths.shape[1])
            wanted = torch.tensor(pattern, dtype=torch.bool)
            if int(wanted.sum()) not in (0, self._strengths.shape[0]):
                raise AttachError(
                    f"the denoiser was called with {int(wanted.sum())} conditional rows, and strengths were given for "
                    f"{self._strengths.shape[0]}; give one row of strengths per picture of the call"
                )
            if bool(wanted.any()):
                rows[wanted] = self._strengths
            self._spread[pattern] = rows
        return self._spread[pattern]


_given: ContextVar[Mapping[object, GivenStrengths]] = ContextVar("semipermeable_given", default=MappingProxyType({}))


def given_to(owner: object) -> GivenStrengths | None:
    """Return the strengths in force for an attachment in this thread, or None."""
    return _given.get().get(owner)


@contextmanager
def giving(owner: object, strengths: Tensor, membranes: Sequence[Membrane]) -> Generator[None, None, None]:
    """Let the calls inside the block use these strengths; see `Attachment.given`.

    Raises:
        AttachError: if the shape does not fit, or no call took the strengths.
    """
    if strengths.dim() != 2 or strengths.shape[1] != len(membranes) or not bool(torch.isfinite(strengths).all()):
        raise AttachError(
            f"strengths must be finite, of shape (rows, {len(membranes)}), one column per membrane; found shape "
            f"{tuple(strengths.shape)}"
        )
    given = GivenStrengths(membranes, strengths.detach().to("cpu", torch.float32))
    token = _given.set({**_given.get(), owner: given})
    try:
        yield
    finally:
        _given.reset(token)
    if not given.used:
        raise AttachError(
            "no call of the gated denoiser took the strengths given: the pipeline's denoiser was replaced, and what it "
            "drew is bare. Detach and attach again."
        )
