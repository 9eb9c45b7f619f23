"""The ASGI application: routes, limits, error answers, and a life from the first to the last request."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from semipermeable import __version__
from semipermeable.server.answers import add_error_answers, error_answer
from semipermeable.server.callers import add_service
from semipermeable.server.limits import BodyLimit
from semipermeable.server.monitoring import Figures
from semipermeable.server.routes import ClientGone, router
from semipermeable.server.service import Service

__all__ = ["create_app"]

_log = logging.getLogger("semipermeable.server")


def create_app(service: Service) -> FastAPI:
    """Return the application; its lifespan starts and stops the service's worker.

    Args:
        service: what it serves.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncGenerator[None, None]:
        service.worker.start()
        watching = asyncio.create_task(_watch(service))
        try:
            yield
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
            await anyio.to_thread.run_sync(service.close)

    # No docs page: it would load scripts from another host.
    app = FastAPI(
        title="semipermeable",
        version=__version__,
        summary="Pictures with concepts erased: OpenAI's images API, one policy of membranes per tenant.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        separate_input_output_schemas=False,
    )
    add_service(app, service)
    app.include_router(router)
    add_error_answers(app, service.figures)

    async def gone(_request: Request, _error: Exception) -> Response:
        return Response(status_code=499)

    app.add_exception_handler(ClientGone, gone)
    limits = service.config.limits
    app.add_middleware(BodyLimit, most_bytes=limits.body_bytes, seconds=limits.body_seconds, answer=error_answer)
    app.add_middleware(_Counted, figures=service.figures)
    app.openapi = lambda: _document(app)
    return app


class _Counted:
    """ASGI middleware: counts answers by tenant, route and status."""

    def __init__(self, app: ASGIApp, figures: Figures) -> None:
        self._app = app
        self._figures = figures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                # The route's own path, not the client's text: that could be anything, and each is a time series.
                route = getattr(scope.get("route"), "path", "-")
                tenant = scope.get("state", {}).get("tenant", "-")
                self._figures.requests.labels(tenant, route, str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, counted)


async def _watch(service: Service) -> None:
    """Look at policies and membranes again and again; a failure is logged."""
    while True:
        await asyncio.sleep(service.config.reload_seconds)
        try:
            await anyio.to_thread.run_sync(service.keeper.refresh)
        except Exception:
            _log.exception("policies or membranes could not be looked at; what was read of them before stays in force")


def _document(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document: FastAPI's, without the 422 answers that this application never gives."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        app.openapi_schema = document
    return app.openapi_schema
