"""The server's own configuration, `server.toml`: read once at start.

What may change while the server runs, policies and membranes, is not here (`policies`, `library`).
"""

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from semipermeable.errors import PolicyError
from semipermeable.server.tables import Table, read_table

__all__ = [
    "AuditTable",
    "DrawingTable",
    "KeyTable",
    "LimitsTable",
    "ListenTable",
    "RayTable",
    "ServerConfig",
    "load_config",
]

_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")


class KeyTable(Table):
    """A stored key; `spm serve-key` prints one."""

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    """The public part of the key, 12 hex digits."""
    hash: Annotated[str, Field(max_length=256)]
    """The salted scrypt digest of its secret part."""


class ListenTable(Table):
    """Where the server listens."""

    host: str = "127.0.0.1"
    """Address; other machines reach the server only if it is not a loopback address."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """TCP port; 0 takes a free one."""
    certificate: Path | None = None
    """PEM file of the TLS certificate chain; None is plain HTTP."""
    certificate_key: Path | None = None
    """PEM file of its private key; None if the certificate's file holds it."""
    plain_http: bool = False
    """Allow plain HTTP on an address that is not loopback, because a proxy in front of the server ends TLS."""

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


class LimitsTable(Table):
    """What one client, one tenant and all together may take."""

    body_bytes: Annotated[int, Field(ge=256, le=2**24)] = 65_536
    """Largest request body, in bytes."""
    header_seconds: Annotated[float, Field(gt=0)] = 10.0
    """Time for a client to send the head of a request."""
    body_seconds: Annotated[float, Field(gt=0)] = 10.0
    """Time for a client to send the body of a request."""
    connections: Annotated[int, Field(ge=1)] = 1024
    """Connections open at once; more are answered 503."""
    prompt_chars: Annotated[int, Field(ge=1)] = 2_000
    """Longest prompt, in characters."""
    images: Annotated[int, Field(ge=1, le=64)] = 4
    """Most pictures of one request."""
    queue_rows: Annotated[int, Field(ge=1)] = 512
    """Most pictures waiting, of all tenants; beyond it requests are answered 429."""
    tenant_rows: Annotated[int, Field(ge=1)] = 128
    """Most pictures waiting of one tenant."""
    deadline_seconds: Annotated[float, Field(gt=0)] = 120.0
    """Time from a request to its pictures; beyond it the answer is 504."""
    drain_seconds: Annotated[float, Field(ge=0)] = 20.0
    """Time that pictures in progress get when the server is asked to stop."""

    @model_validator(mode="after")
    def _consistent(self) -> "LimitsTable":
        if not self.images <= self.tenant_rows <= self.queue_rows:
            raise ValueError(
                f"images = {self.images}, tenant_rows = {self.tenant_rows} and queue_rows = {self.queue_rows} must "
                "not fall in this order, or some request could never be drawn"
            )
        return self


class DrawingTable(Table):
    """How pictures are drawn."""

    steps: Annotated[int, Field(ge=1)] = 25
    """Denoising steps where a request does not say."""
    max_steps: Annotated[int, Field(ge=1, le=1000)] = 50
    """Most denoising steps a request may ask for."""
    guidance: Annotated[float, Field(ge=1)] = 4.0
    """Classifier-free guidance where a request does not say; 1 is without."""
    max_guidance: Annotated[float, Field(ge=1)] = 15.0
    """Strongest guidance a request may ask for."""
    sizes: tuple[str, ...] = ()
    """Sizes that may be asked for, "WIDTHxHEIGHT", the first by default; empty is the model's own size."""
    batch_rows: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Most pictures in one denoiser call; None chooses by the model's size."""

    @model_validator(mode="after")
    def _consistent(self) -> "DrawingTable":
        if self.steps > self.max_steps:
            raise ValueError(f"steps = {self.steps} is more than max_steps = {self.max_steps}")
        if self.guidance > self.max_guidance:
            raise ValueError(f"guidance = {self.guidance:g} is more than max_guidance = {self.max_guidance:g}")
        for size in self.sizes:
            if _SIZE.fullmatch(size) is None:
                raise ValueError(f'sizes holds {size!r}; write e.g. "512x512"')
        return self


class AuditTable(Table):
    """The record of every picture."""

    url: str | None = None
    """SQLAlchemy URL of the database; None is `audit.sqlite3` beside the configuration."""
    prompts: Literal["text", "hash"] = "text"
    """Keep prompts as text, or only their salted hash."""


class RayTable(Table):
    """Replicas that draw, under Ray Serve; see `fleet`."""

    address: str | None = None
    """Of a running Ray cluster, "HOST:PORT", or "auto" for that of this machine; None starts Ray here, and ends it."""
    app: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = "semipermeable"
    """Name of the Serve application; two servers on one cluster need two names."""
    replicas: Annotated[int, Field(ge=1, le=1000)] = 2
    """Replicas, each with the whole model; with `max_replicas` the fewest."""
    max_replicas: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Most replicas, started and ended as pictures wait; None keeps `replicas`."""
    idle_seconds: Annotated[float, Field(ge=1)] = 300.0
    """For how long there must be too many replicas before one ends; without effect unless `max_replicas` is more."""
    cpus: Annotated[float, Field(gt=0)] = 1.0
    """CPUs of a replica."""
    gpus: Annotated[float, Field(ge=0)] | None = None
    """GPUs of a replica; a fraction shares one. None is 1 if the cluster has any and `device` is not a CPU, else 0."""

    @property
    def most(self) -> int:
        """The most replicas there may be."""
        return self.max_replicas or self.replicas

    @model_validator(mode="after")
    def _consistent(self) -> "RayTable":
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas = {self.max_replicas} is less than replicas = {self.replicas}")
        if self.address is not None and self.address.startswith("ray://"):
            raise ValueError(
                f"address = {self.address!r} is a Ray client's; run the server on a machine of the cluster, with "
                '"HOST:PORT" of its head or "auto"'
            )
        return self


class ServerConfig(Table):
    """Everything in `server.toml`."""

    model: str = "emoji"
    """A bundled model, a hub id, a diffusers folder, or one .safetensors checkpoint."""
    device: str | None = None
    """A torch device; None is the best there is."""
    dtype: Literal["fp32", "fp16", "bf16"] | None = None
    """Of the weights; None chooses by model and device."""
    membranes: Path = Path("membranes")
    """Folder of membrane files, watched."""
    policies: Path | None = None
    """TOML file of policies and tenants, watched; None is one local tenant under every membrane of the folder."""
    reload_seconds: Annotated[float, Field(gt=0)] = 1.0
    """How often policies and membranes are looked at."""
    explain: bool = False
    """Tell clients γ and its reason for every picture. It helps those who search for prompts that slip through."""
    open_metrics: bool = False
    """Serve /metrics without a key; it names tenants."""
    admin_keys: tuple[KeyTable, ...] = ()
    """Keys that may read all records and delete a tenant's."""
    listen: ListenTable = ListenTable()
    """See ListenTable."""
    limits: LimitsTable = LimitsTable()
    """See LimitsTable."""
    drawing: DrawingTable = DrawingTable()
    """See DrawingTable."""
    audit: AuditTable = AuditTable()
    """See AuditTable."""
    ray: RayTable | None = None
    """See RayTable; None draws in the server's own process."""

    def checked(self) -> "ServerConfig":
        """Return this configuration if it is safe to run.

        Raises:
            PolicyError: if it would send keys over a network in plain text, or a TLS file is missing.
        """
        listen = self.listen
        if listen.certificate is None and listen.certificate_key is not None:
            raise PolicyError("listen.certificate_key is set without listen.certificate; give both or none")
        for file in (listen.certificate, listen.certificate_key):
            if file is not None and not file.is_file():
                raise PolicyError(f"the TLS file {file.name!r} does not exist; check listen.certificate and its key")
        if listen.certificate is None and not listen.is_loopback and not listen.plain_http:
            raise PolicyError(
                f"listening on {listen.host} without TLS would send keys in plain text; set listen.certificate, or "
                "listen.plain_http = true if a proxy in front ends TLS"
            )
        return self


def load_config(path: Path) -> ServerConfig:
    """Read `server.toml`; paths in it are relative to its folder.

    Raises:
        PolicyError: naming the key that is not usable.
    """
    config = read_table(path, ServerConfig)
    home = path.absolute().parent
    listen = config.listen.model_copy(
        update={
            key: home / value for key in ("certificate", "certificate_key") if (value := getattr(config.listen, key))
        }
    )
    url = config.audit.url or f"sqlite:///{home / 'audit.sqlite3'}"
    return config.model_copy(
        update={
            "membranes": home / config.membranes,
            "policies": home / config.policies if config.policies else None,
            "listen": listen,
            "audit": config.audit.model_copy(update={"url": url}),
        }
    )
