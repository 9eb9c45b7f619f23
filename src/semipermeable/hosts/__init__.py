"""The one place that knows pipeline families. A new family is one file and one line in `_HOSTS`."""

from typing import Any

from semipermeable.errors import ArchitectureError
from semipermeable.hosts.base import Host, weights_hash
from semipermeable.hosts.unet import UNetHost

__all__ = ["Host", "UNetHost", "host_for", "weights_hash"]

_HOSTS: tuple[type[UNetHost], ...] = (UNetHost,)


def host_for(pipe: Any) -> Host:
    """Return the host of a diffusers pipeline.

    Args:
        pipe: a loaded diffusers pipeline.

    Raises:
        ArchitectureError: if no host supports it; the message says what is supported.
    """
    for host in _HOSTS:
        if host.supports(pipe):
            return host(pipe)
    known = "; ".join(host.describes for host in _HOSTS)
    parts = ", ".join(sorted(getattr(pipe, "components", {}) or {})) or "no components"
    raise ArchitectureError(
        f"no host supports {type(pipe).__name__} ({parts}). Supported: {known}. "
        "docs/adding-a-family.md shows how to add a family in one file."
    )
