"""The HTTP routes. None of them opens a file, or turns anything a client sent into a path."""

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import anyio
import anyio.to_thread
from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from semipermeable.errors import AuditError, RefusedError
from semipermeable.server.callers import Admin, Credentials, Known, Served, caller_of
from semipermeable.server.jobs import Drawn, Job, too_late
from semipermeable.server.monitoring import CONTENT_TYPE
from semipermeable.server.planning import plan_for
from semipermeable.server.schemas import (
    AuditAnswer,
    AuditRow,
    DeletionAnswer,
    ErrorAnswer,
    HealthAnswer,
    ImageRequest,
    ImagesAnswer,
    MembranesAnswer,
    MembraneView,
    Model,
    ModelsAnswer,
    PoliciesAnswer,
    PolicyView,
    ProblemView,
    ReadyAnswer,
)
from semipermeable.server.service import Finished

__all__ = ["ClientGone", "router"]

_GRACE_SECONDS = 1.0
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Responses = dict[int | str, dict[str, Any]]


class ClientGone(Exception):  # noqa: N818 - not an error of ours
    """The client closed its connection before its pictures were ready."""


def _errors(*statuses: int) -> Responses:
    return {status: {"model": ErrorAnswer} for status in statuses}


router = APIRouter()


@router.post("/v1/images/generations", responses=_errors(400, 401, 403, 404, 408, 413, 429, 500, 503, 504))
async def draw(request: Request, asked: ImageRequest, service: Served, known: Known) -> ImagesAnswer:
    """Draw pictures under the tenant's policy."""
    if known.tenant is None:
        raise RefusedError("this key administers; draw with a tenant's key", status=403, code="not_a_tenant")
    if not service.worker.alive:
        raise RefusedError("the server does not draw at present", status=503, code="not_ready", retry_after=10)
    plan_for(service.keeper.state, known.tenant, asked.erase)
    jobs = service.jobs_for(asked, known.tenant)
    start = time.perf_counter()
    service.queue.put(jobs)
    drawn = await _drawn(jobs, request)
    # The thread runs to its end even if the client leaves now: the pictures are drawn, so they go on record.
    done: Finished = await anyio.to_thread.run_sync(partial(service.finish, asked, jobs, drawn))
    service.figures.request_seconds.observe(time.perf_counter() - start)
    shape = jobs[0].shape
    return ImagesAnswer(
        created=int(time.time()),
        data=list(done.pictures),
        size=f"{shape.width}x{shape.height}",
        output_format=asked.output_format,
        request_id=done.request,
        policy=drawn[-1].plan.version,
        missing=list(dict.fromkeys(name for one in drawn for name in one.plan.missing)),
    )


async def _drawn(jobs: Sequence[Job], request: Request) -> list[Drawn]:
    """Wait for the rows, the client's leaving, or the deadline, whatever comes first."""
    pictures = asyncio.gather(*(asyncio.wrap_future(job.future) for job in jobs))
    # What comes after nobody waits any more is nobody's error; asyncio would log it as one never retrieved.
    pictures.add_done_callback(lambda done: done.cancelled() or done.exception())
    left = asyncio.ensure_future(_disconnected(request))
    patience = max(0.0, jobs[0].deadline - time.monotonic()) + _GRACE_SECONDS
    try:
        await asyncio.wait({pictures, left}, return_when=asyncio.FIRST_COMPLETED, timeout=patience)
        if pictures.done():
            return pictures.result()
        if left.done():
            raise ClientGone
        raise too_late()
    finally:
        left.cancel()
        for job in jobs:
            job.abandon()
        pictures.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


@router.get("/v1/models", responses=_errors(401, 500))
async def models(service: Served, _known: Known) -> ModelsAnswer:
    """Say which model is served."""
    return ModelsAnswer(data=[Model(id=service.config.model, created=service.started, owned_by="semipermeable")])


@router.get("/v1/policies", responses=_errors(401, 500))
async def policies(service: Served, known: Known) -> PoliciesAnswer:
    """Say which policies are in force; a tenant sees its own."""
    state = service.keeper.state
    views: list[PolicyView] = []
    for policy in state.policies.policies.values():
        tenants = [one.name for one in state.policies.tenants.values() if one.policy == policy.name]
        if not known.admin:
            tenants = [name for name in tenants if name == known.tenant]
        if known.admin or tenants:
            version, missing = state.version_of(policy), list(state.missing_for(policy))
            views.append(
                PolicyView(version=version, missing=missing, tenants=tenants, **policy.model_dump(mode="json"))
            )
    return PoliciesAnswer(state=state.number, data=views)


@router.get("/v1/membranes", responses=_errors(401, 500))
async def membranes(service: Served, _known: Known) -> MembranesAnswer:
    """Say which membranes there are; any of them can be named in `erase`."""
    state = service.keeper.state
    views = [
        MembraneView(
            concept=one.concept,
            aliases=list(one.membrane.concept.aliases),
            file=one.file,
            sha256=one.sha256,
            sites=len(one.membrane.pairs),
            rank=one.membrane.rank,
            parameters=one.membrane.num_parameters,
            base_model=one.membrane.provenance.base_model,
        )
        for one in state.shelf.membranes.values()
    ]
    return MembranesAnswer(state=state.number, data=views)


@router.get("/v1/audit", responses=_errors(400, 401, 403, 500, 503))
async def read_audit(
    service: Served,
    known: Known,
    tenant: Annotated[str | None, Query(max_length=64, pattern=_NAME)] = None,
    after: Annotated[int, Query(ge=0, le=2**63 - 1)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> AuditAnswer:
    """Read records, oldest first; a tenant reads its own."""
    if not known.admin and tenant not in (None, known.tenant):
        raise RefusedError("this key reads its own tenant's records only", status=403, code="not_admin")
    whose = tenant if known.admin else known.tenant
    rows = await anyio.to_thread.run_sync(partial(service.audit.read, tenant=whose, after=after, limit=limit))
    data = [AuditRow.model_validate(row) for row in rows]
    return AuditAnswer(data=data, next=data[-1].id if len(data) == limit else None)


@router.delete("/v1/audit", responses=_errors(400, 401, 403, 500, 503))
async def delete_audit(
    service: Served, _admin: Admin, tenant: Annotated[str, Query(max_length=64, pattern=_NAME)]
) -> DeletionAnswer:
    """Delete every record of a tenant; needs an administrator's key."""
    gone = await anyio.to_thread.run_sync(service.audit.delete_tenant, tenant)
    return DeletionAnswer(tenant=tenant, deleted=gone)


@router.get("/healthz")
async def healthz() -> HealthAnswer:
    """Say that the process answers."""
    return HealthAnswer()


@router.get("/readyz", response_model=ReadyAnswer, responses={503: {"model": ReadyAnswer}})
async def readyz(service: Served) -> Response:
    """Say whether pictures can be drawn, and what is wrong on disk."""
    state = service.keeper.state
    problems = [ProblemView(file=one.file, message=one.message, kept=one.kept) for one in state.problems]
    standing = await anyio.to_thread.run_sync(service.painter.standing)
    ready = service.worker.alive and standing.ready
    if standing.message:
        problems.append(ProblemView(file="replicas", message=standing.message, kept=standing.ready))
    try:
        await anyio.to_thread.run_sync(service.audit.check)
    except AuditError as error:
        ready = False
        problems.append(ProblemView(file="audit", message=str(error), kept=False))
    answer = ReadyAnswer(ready=ready, state=state.number, problems=problems)
    return JSONResponse(answer.model_dump(), 200 if ready else 503)


_FIGURES: Responses = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


@router.get("/metrics", response_class=Response, responses=_FIGURES | _errors(401, 403))
async def metrics(request: Request, service: Served, credentials: Credentials) -> Response:
    """Figures for Prometheus; needs an administrator's key unless the configuration opens them."""
    if not service.config.open_metrics:
        known = await caller_of(request, service, credentials)
        if not known.admin:
            raise RefusedError("figures need an administrator's key", status=403, code="not_admin")
    return PlainTextResponse(service.figures.text(), media_type=CONTENT_TYPE)
