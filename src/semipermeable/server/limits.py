"""Bounds on what arrives: size and time of bodies (ASGI), time of heads (the HTTP protocol).

uvicorn limits the size of a head and the idle time between requests, not the time that a head may take: a client that
sends one byte a minute would hold its connection for ever. `GuardedProtocol` closes such a connection.
"""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import h11
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from semipermeable.errors import RefusedError

__all__ = ["BodyLimit", "guarded_protocol"]

_HEADERS = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'"),
)
Answer = Callable[[RefusedError], Callable[[Scope, Receive, Send], Awaitable[None]]]


class BodyLimit:
    """ASGI middleware: the whole body is read within a limit of bytes and seconds before the application runs.

    Args:
        app: the application.
        most_bytes: largest body.
        seconds: time for it to arrive.
        answer: makes a response of a refusal.
    """

    def __init__(self, app: ASGIApp, most_bytes: int, seconds: float, answer: Answer) -> None:
        self._app = app
        self._most_bytes = most_bytes
        self._seconds = seconds
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        try:
            async with asyncio.timeout(self._seconds):
                body = await self._read(scope, receive)
        except RefusedError as error:
            await self._answer(error)(scope, receive, with_headers)
            return
        except TimeoutError:
            error = RefusedError(
                f"the body did not arrive within {self._seconds:g} seconds", status=408, code="body_timeout"
            )
            await self._answer(error)(scope, receive, with_headers)
            return
        if body is None:
            return
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return waiting.pop() if waiting else await receive()

        await self._app(scope, replay, with_headers)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """Return the body, or None if the client left.

        Raises:
            RefusedError: 413 if it is too long, as soon as that is known.
        """
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared[:20]) > self._most_bytes:
            raise self._too_long()
        parts: list[bytes] = []
        num_bytes = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            num_bytes += len(part)
            if num_bytes > self._most_bytes:
                raise self._too_long()
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    def _too_long(self) -> RefusedError:
        return RefusedError(
            f"the body is longer than {self._most_bytes} bytes, the limit of this server", status=413, code="too_large"
        )


def guarded_protocol(head_seconds: float) -> type[H11Protocol]:
    """Return uvicorn's HTTP/1.1 protocol with a time limit on the head of every request.

    Args:
        head_seconds: time from the first byte of a connection or request (or from connecting) to the end of its head.
    """

    class GuardedProtocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._unwatch()
            super().connection_lost(exc)

        def _watch(self) -> None:
            """Run the timer exactly while the client owes us the rest of a head."""
            if self.conn.their_state is not h11.IDLE:
                self._unwatch()
            elif self._timer is None:
                self._timer = self.loop.call_later(head_seconds, self._late)

        def _unwatch(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _late(self) -> None:
            self._timer = None
            if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
                self.transport.close()

    return GuardedProtocol
