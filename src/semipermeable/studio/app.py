"""The ASGI application around the page: it speaks to its own browser only, and lets the page speak to nobody else.

Three rules, enforced on every answer: the Host header must be one that this server was started under (a name that was
rebound to 127.0.0.1 is refused), a request that another site's page makes is refused, and a content security policy
keeps the page from loading or sending anything elsewhere.
"""

import os
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
from fastapi import FastAPI
from fastapi.responses import HTMLResponse, PlainTextResponse
from gradio.themes import Default as DefaultTheme
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from semipermeable.studio.desk import Desk
from semipermeable.studio.evaluating import REPORT
from semipermeable.studio.fragments import STYLE
from semipermeable.studio.page import build_page

__all__ = ["create_app"]

_PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
)
_REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
)
_LARGEST_UPLOAD = 512 * 2**20
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")


class _OwnPageOnly:
    """Refuses requests of other sites' pages, and adds the content security policy."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        origin, host = headers.get(b"origin", b"").decode("latin-1"), headers.get(b"host", b"").decode("latin-1")
        if origin and urlsplit(origin).netloc != host:
            await PlainTextResponse("the studio answers to its own page only\n", 403)(scope, receive, send)
            return
        policy = _REPORT_POLICY if scope["path"] == "/report" else _PAGE_POLICY

        async def with_policy(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                added = [(b"content-security-policy", policy.encode()), (b"x-content-type-options", b"nosniff")]
                message["headers"] = [*message.get("headers", ()), *added, (b"referrer-policy", b"no-referrer")]
            await send(message)

        await self._app(scope, receive, with_policy)


def create_app(desk: Desk, host: str = "127.0.0.1") -> FastAPI:
    """Return the application of a desk.

    Args:
        desk: what it shows.
        host: address it is served on; the page answers under that name, or, on a loopback address, under any such.
    """
    # Gradio reads these when it builds a page: no statistics are sent, and pictures stay in the work folder.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(desk.work.root / "cache")
    app = FastAPI(title="spm studio", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/report")
    def report() -> HTMLResponse:  # pyright: ignore[reportUnusedFunction]
        folder = desk.results()
        path = None if folder is None else folder / REPORT
        if path is None or not path.is_file():
            return HTMLResponse("<p>No report yet: choose a test and press Evaluate.</p>", 404)
        return HTMLResponse(path.read_text(encoding="utf-8"))

    corners = [str(desk.work.corner(corner)) for corner in ("erasing", "drawings", "exports")]
    gr.mount_gradio_app(
        app, build_page(desk), "/", css=STYLE, theme=DefaultTheme(), allowed_paths=corners, ssr_mode=False,
        max_file_size=_LARGEST_UPLOAD, footer_links=[], show_error=False, enable_monitoring=False,
    )  # fmt: skip
    app.add_middleware(_OwnPageOnly)
    if host in _LOOPBACK:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(_LOOPBACK))
    return app
