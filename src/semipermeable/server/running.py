"""Run the application under uvicorn: limits on connections and heads, TLS, a graceful end."""

import uvicorn
from fastapi import FastAPI

from semipermeable.server.config import ServerConfig
from semipermeable.server.limits import guarded_protocol

__all__ = ["make_server"]

_MAX_HEAD_BYTES = 16_384


def make_server(app: FastAPI, config: ServerConfig) -> uvicorn.Server:
    """Return a server that is not running yet; `.run()` blocks until it is asked to stop.

    Args:
        app: the application.
        config: where to listen, TLS, limits.
    """
    listen, limits = config.listen, config.limits
    return uvicorn.Server(
        uvicorn.Config(
            app,
            host=listen.host,
            port=listen.port,
            http=guarded_protocol(limits.header_seconds),
            # Whatever else is installed, the loop is the one that the hostile tests run on.
            loop="asyncio",
            ws="none",
            lifespan="on",
            log_level="info",
            # Request lines are counted (/metrics) and pictures recorded (audit); a third list of clients helps nobody.
            access_log=False,
            # The address in a forwarded header is the client's word; nothing here depends on it.
            proxy_headers=False,
            server_header=False,
            limit_concurrency=limits.connections,
            h11_max_incomplete_event_size=_MAX_HEAD_BYTES,
            timeout_graceful_shutdown=max(1, round(limits.drain_seconds)),
            ssl_certfile=listen.certificate,
            ssl_keyfile=listen.certificate_key,
        )
    )
