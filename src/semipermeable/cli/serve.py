"""`spm serve`, `spm serve-key` and `spm serve-audit`: the HTTP server, its keys, and its records."""

import importlib.util
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from semipermeable.cli.options import DeviceOption, silence_libraries
from semipermeable.cli.problems import fail, guarded

if TYPE_CHECKING:
    from semipermeable.server.config import KeyTable, RayTable, ServerConfig
    from semipermeable.server.policies import PolicySet

__all__ = ["AUDIT_EXAMPLE", "KEY_EXAMPLE", "SERVE_EXAMPLE", "serve_audit_command", "serve_command", "serve_key_command"]

SERVE_EXAMPLE = "Example:  spm serve --membranes membranes/      For tenants:  spm serve --config server.toml"
KEY_EXAMPLE = "Example:  spm serve-key"
AUDIT_EXAMPLE = "Example:  spm serve-audit --config server.toml --tenant acme --delete"

_NEEDED = ("fastapi", "uvicorn", "sqlalchemy", "prometheus_client")
ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="server.toml; see docs/serve.md.")]


@guarded
def serve_command(
    config: ConfigOption = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="A bundled model, a hub id, a diffusers folder, or one .safetensors checkpoint."),
    ] = None,
    membranes: Annotated[
        Path | None, typer.Option("--membranes", "-m", help="Folder of membranes, watched; ./membranes by default.")
    ] = None,
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on; 127.0.0.1 by default.")] = None,
    port: Annotated[
        int | None, typer.Option("--port", help="TCP port; 8000 by default, 0 takes a free one.", min=0, max=65535)
    ] = None,
    device: DeviceOption = None,
    ray: Annotated[
        bool, typer.Option("--ray", help="Draw with replicas under Ray Serve (extra 'cluster'), started here.")
    ] = False,
    replicas: Annotated[
        str | None,
        typer.Option(
            "--replicas", metavar="N|MIN:MAX", help="Replicas, each with the whole model; 2 by default. Means --ray."
        ),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option("--ray-address", help="HOST:PORT of a running Ray cluster, or auto. Means --ray."),
    ] = None,
) -> None:
    """Serve pictures over OpenAI's images API, under one policy of membranes per tenant.

    Without a policy file there is one tenant, under every membrane of the folder, and its key is printed at the start.
    """
    _require_extra()
    from semipermeable.server.app import create_app
    from semipermeable.server.running import make_server
    from semipermeable.server.service import Service

    settings = _settings(config, model, membranes, host, port, device).checked()
    if ray or replicas is not None or ray_address is not None:
        settings = settings.model_copy(update={"ray": _ray_table(settings, replicas, ray_address)})
    policies, admins = _local(settings)
    silence_libraries()
    where = "" if settings.ray is None else " into replicas under Ray Serve"
    typer.echo(f"loading {settings.model}{where}", err=True)
    service = Service.load(settings, policies, admins)
    for problem in service.keeper.state.problems:
        typer.echo(f"warning: {problem.file}: {problem.message}", err=True)
    make_server(create_app(service), settings).run()


@guarded
def serve_key_command() -> None:
    """Make a new API key: printed once, stored by you as a salted hash."""
    _require_extra()
    from semipermeable.server.keys import make_key

    new = make_key()
    typer.echo(f"key, for the client; it cannot be shown again:\n  {new.key}\n")
    typer.echo("line for policies.toml (keys of a [[tenant]]) or server.toml (admin_keys):")
    typer.echo(f'  {{id = "{new.id}", hash = "{new.hash}"}},')


@guarded
def serve_audit_command(
    config: ConfigOption = None,
    url: Annotated[
        str | None, typer.Option("--url", help="SQLAlchemy URL of the database, instead of --config.")
    ] = None,
    tenant: Annotated[str | None, typer.Option("--tenant", help="Only this tenant's records.")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete every record of --tenant.")] = False,
) -> None:
    """Print the audit log, one JSON object a line, or delete a tenant's records."""
    _require_extra()
    from semipermeable.server.audit import AuditLog
    from semipermeable.server.config import load_config

    if (config is None) == (url is None):
        raise typer.BadParameter("say where the records are: --config server.toml, or --url sqlite:///audit.sqlite3")
    if delete and tenant is None:
        raise typer.BadParameter("--delete needs --tenant NAME")
    place = load_config(config).audit.url if config else url
    log = AuditLog(place or "")
    try:
        if delete and tenant is not None:
            typer.echo(f"{log.delete_tenant(tenant)} records of {tenant!r} deleted")
            return
        after = 0
        while rows := log.read(tenant=tenant, after=after, limit=500):
            for row in rows:
                typer.echo(json.dumps(row, ensure_ascii=False, sort_keys=True))
            after = rows[-1]["id"]
    finally:
        log.close()


def _require_extra() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise fail(f"the server needs {missing[0]}; install it with: pip install 'semipermeable[serve]'")


def _settings(
    config: Path | None,
    model: str | None,
    membranes: Path | None,
    host: str | None,
    port: int | None,
    device: str | None,
) -> "ServerConfig":
    """Return the configuration file's settings, or the defaults, under what the command line says."""
    from semipermeable.server.config import AuditTable, ServerConfig, load_config

    if config is None:
        settings = ServerConfig(audit=AuditTable(url=f"sqlite:///{Path('audit.sqlite3').absolute()}"))
    else:
        settings = load_config(config)
    listen = {"host": host, "port": port}
    given = {
        "model": model,
        "membranes": membranes,
        "device": device,
        "listen": settings.listen.model_copy(update={key: value for key, value in listen.items() if value is not None}),
    }
    return settings.model_copy(update={key: value for key, value in given.items() if value is not None})


def _ray_table(settings: "ServerConfig", replicas: str | None, address: str | None) -> "RayTable":
    """Return the configuration's `[ray]` under what the command line says."""
    from semipermeable.server.config import RayTable
    from semipermeable.server.tables import fit_table

    given: dict[str, str | int | None] = {} if address is None else {"address": address}
    if replicas is not None:
        shape = re.fullmatch(r"([1-9][0-9]{0,3})(?::([1-9][0-9]{0,3}))?", replicas)
        if shape is None:
            raise typer.BadParameter(f"--replicas is {replicas!r}; write e.g. 2, or 1:8 for as many as pictures need")
        given |= {"replicas": int(shape[1]), "max_replicas": int(shape[2]) if shape[2] else None}
    return fit_table((settings.ray or RayTable()).model_dump() | given, "--ray", RayTable)


def _local(settings: "ServerConfig") -> "tuple[PolicySet | None, tuple[KeyTable, ...]]":
    """Return the policies and the administrator's key of a server without policy file, and print that key."""
    if settings.policies is not None:
        return None, ()
    from semipermeable.errors import PolicyError
    from semipermeable.server.config import KeyTable
    from semipermeable.server.keys import make_key
    from semipermeable.server.policies import local_policies

    if not settings.membranes.is_dir():
        raise PolicyError(
            f"there is no folder of membranes {settings.membranes.name!r}; make one, e.g. with "
            f'`spm erase "cat" --out {settings.membranes.name}/cat.safetensors`, or name it with --membranes'
        )
    new = make_key()
    key = KeyTable(id=new.id, hash=new.hash)
    typer.echo(f"key for this run, also for administration: {new.key}", err=True)
    return local_policies(key), (key,)
