"""Whose key a request carries, as dependencies of the routes."""

from typing import Annotated

import anyio
import anyio.to_thread
from fastapi import Depends, FastAPI, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from semipermeable.errors import RefusedError
from semipermeable.server.service import Caller, Service

__all__ = ["Admin", "Credentials", "Known", "Served", "add_service", "caller_of"]

_MOST_CHECKS = 2
_bearer = HTTPBearer(auto_error=False, description="A key made by `spm serve-key`.")


def add_service(app: FastAPI, service: Service) -> None:
    """Put a service into an application's state, where `Served` finds it."""
    app.state.service = service
    app.state.checks = anyio.CapacityLimiter(_MOST_CHECKS)


def _service(request: Request) -> Service:
    return request.app.state.service


Served = Annotated[Service, Depends(_service)]
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


async def caller_of(request: Request, service: Served, credentials: Credentials) -> Caller:
    """Return whose key the request carries. Wrong keys keep two threads busy at most, and right ones do not wait.

    Raises:
        RefusedError: 401 if there is no valid key.
    """
    found = service.recall(credentials.credentials) if credentials else None
    if found is None and credentials is not None:
        limiter: anyio.CapacityLimiter = request.app.state.checks
        found = await anyio.to_thread.run_sync(service.verify, credentials.credentials, limiter=limiter)
    if found is None:
        raise RefusedError(
            "no valid key; send the header 'Authorization: Bearer spm_…'", status=401, code="invalid_api_key"
        )
    request.state.tenant = found.tenant or "admin"
    return found


Known = Annotated[Caller, Depends(caller_of)]


def require_admin(known: Known) -> Caller:
    """Return the caller if it administers.

    Raises:
        RefusedError: 403 if it does not.
    """
    if not known.admin:
        raise RefusedError("this needs an administrator's key", status=403, code="not_admin")
    return known


Admin = Annotated[Caller, Depends(require_admin)]
