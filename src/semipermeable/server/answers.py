"""Refusals as OpenAI's error object, whatever raised them."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from semipermeable.errors import AuditError, RefusedError
from semipermeable.server.monitoring import Figures

__all__ = ["add_error_answers", "error_answer"]

_log = logging.getLogger("semipermeable.server")
_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def error_answer(error: RefusedError) -> JSONResponse:
    """Return the answer to a refused request: status, OpenAI's error object, and Retry-After where it helps."""
    kind = _KINDS.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if error.status in (408, 413):
        headers["connection"] = "close"
    content = {"error": {"message": str(error), "type": kind, "param": error.param, "code": error.code}}
    return JSONResponse(content, error.status, headers)


def add_error_answers(app: FastAPI, figures: Figures) -> None:
    """Let every error of an application be answered with OpenAI's error object.

    Args:
        app: the application.
        figures: counts refusals by code.
    """

    async def refused(_request: Request, error: Exception) -> Response:
        if not isinstance(error, RefusedError):
            raise error
        figures.refusals.labels(error.code).inc()
        return error_answer(error)

    async def invalid(request: Request, error: Exception) -> Response:
        if not isinstance(error, RequestValidationError):
            raise error
        return await refused(request, _first(error.errors()))

    async def http(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise error
        code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
        answer = await refused(request, RefusedError(str(error.detail), status=error.status_code, code=code))
        answer.headers.update(error.headers or {})
        return answer

    async def audit(request: Request, error: Exception) -> Response:
        return await refused(request, RefusedError(str(error), status=503, code="audit_unavailable"))

    async def unforeseen(request: Request, _error: Exception) -> Response:
        message = "the server failed; its log says why"
        return await refused(request, RefusedError(message, status=500, code="internal"))

    app.add_exception_handler(RefusedError, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(AuditError, audit)
    app.add_exception_handler(Exception, unforeseen)
    app.add_middleware(_Unforeseen, answer=unforeseen)


class _Unforeseen:
    """ASGI middleware: answers errors that nobody thought of.

    A handler for Exception sits outside of all middleware: its answers are not counted and lack the headers of others.

    Args:
        app: the application.
        answer: makes a response of such an error.
    """

    def __init__(self, app: ASGIApp, answer: Callable[[Request, Exception], Awaitable[Response]]) -> None:
        self._app = app
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def noted(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:
            if begun:
                raise
            _log.exception("a request failed")
            response = await self._answer(Request(scope), error)
            await response(scope, receive, send)


def _first(found: Any) -> RefusedError:
    """Return the first finding of a validation; the value itself is left out, it may be long or hostile."""
    first = found[0]
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "header")]
    param = ".".join(place) or None
    if first["type"] == "json_invalid":
        return RefusedError("the body is not valid JSON", status=400, code="invalid_json")
    return RefusedError(
        f"{param or 'the body'}: {first['msg']}; see /openapi.json", status=400, code="invalid_value", param=param
    )
