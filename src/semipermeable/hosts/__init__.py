"""The one place that knows pipeline families. A new family is one file and one line in `_HOSTS`."""

from typing import Any

from semipermeable.errors import ArchitectureError
from semipermeable.hosts.base import CallRows, EncodeResult, Host, Observed, together, viewed, weights_hash
from semipermeable.hosts.condition import MASK, Condition
from semipermeable.hosts.flux import FluxHost
from semipermeable.hosts.pixart import PixArtHost
from semipermeable.hosts.qwen_image import QwenImageHost
from semipermeable.hosts.sana import SanaHost
from semipermeable.hosts.sd3 import SD3Host
from semipermeable.hosts.sdxl import SDXLHost
from semipermeable.hosts.unet import UNetHost
from semipermeable.hosts.wan import WanHost
from semipermeable.hosts.z_image import ZImageHost

__all__ = [
    "MASK",
    "CallRows",
    "Condition",
    "EncodeResult",
    "FluxHost",
    "Host",
    "Observed",
    "PixArtHost",
    "QwenImageHost",
    "SD3Host",
    "SDXLHost",
    "SanaHost",
    "UNetHost",
    "WanHost",
    "ZImageHost",
    "host_for",
    "together",
    "viewed",
    "weights_hash",
]

_HOSTS: tuple[type[Host], ...] = (
    UNetHost,
    SDXLHost,
    SD3Host,
    FluxHost,
    PixArtHost,
    WanHost,
    QwenImageHost,
    SanaHost,
    ZImageHost,
)
"""All families; the first that supports a pipeline is its host."""


def host_for(pipe: Any) -> Host:
    """Return the host of a diffusers pipeline.

    Args:
        pipe: a loaded diffusers pipeline.

    Raises:
        ArchitectureError: if no host supports it; the message says what is supported.
    """
    for host in _HOSTS:
        if host.supports(pipe) and hasattr(pipe, host.encode_name):
            return host(pipe)
    known = "; ".join(host.describes for host in _HOSTS)
    parts = ", ".join(sorted(getattr(pipe, "components", {}) or {})) or "no components"
    raise ArchitectureError(
        f"no host supports {type(pipe).__name__} ({parts}). Supported: {known}. "
        "docs/adding-a-family.md shows how to add a family in one file."
    )
