"""Serve a desk until it is told to stop."""

import socket
from collections.abc import Callable

import uvicorn

from semipermeable.errors import StudioError
from semipermeable.studio.app import create_app
from semipermeable.studio.desk import Desk

__all__ = ["run_studio"]


def run_studio(desk: Desk, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM, then stop all work.

    Args:
        desk: what is served.
        host: address.
        port: TCP port; 0 takes a free one.
        say: told where the page is, once it can be opened.

    Raises:
        StudioError: if the address cannot be used.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        desk.close()
        raise StudioError(
            f"cannot listen on {host}:{port} ({error.strerror or error}); choose another with --port"
        ) from error
    name = f"[{host}]" if ":" in host else host
    server = uvicorn.Server(
        uvicorn.Config(create_app(desk, host), log_level="warning", timeout_graceful_shutdown=2, access_log=False)
    )
    say(f"the studio is at http://{name}:{listener.getsockname()[1]}  (work folder {desk.work.root}; Ctrl-C ends it)")
    try:
        server.run(sockets=[listener])
    finally:
        desk.close()
        listener.close()
