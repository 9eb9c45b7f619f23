"""A running server without its HTTP face: pipeline, state in force, queue, worker, audit log, figures."""

import base64
import hashlib
import io
import logging
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from semipermeable.errors import AuditError, ConfigError, RefusedError
from semipermeable.generation import load_model
from semipermeable.server.audit import AuditLog, Record
from semipermeable.server.config import KeyTable, ServerConfig
from semipermeable.server.fleet import Fleet
from semipermeable.server.jobs import CallShape, Drawn, FairQueue, Job
from semipermeable.server.keys import KeyRing, Remembered
from semipermeable.server.monitoring import Figures
from semipermeable.server.painter import Painter
from semipermeable.server.painting import Paints, ReplicaLost
from semipermeable.server.policies import PolicySet
from semipermeable.server.schemas import Explanation, ImageRequest, Picture
from semipermeable.server.state import Keeper
from semipermeable.server.worker import Worker

__all__ = ["Caller", "Finished", "Service"]

_log = logging.getLogger("semipermeable.server")
_FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose key a request carries.

    Args:
        tenant: the tenant's name; None for a key that only administers.
        admin: whether it may see and delete everything.
    """

    tenant: str | None
    admin: bool


@dataclass(frozen=True, slots=True)
class Finished:
    """The pictures of one request, encoded and on record."""

    request: str
    pictures: tuple[Picture, ...]
    drawn: tuple[Drawn, ...]


class Service:
    """Everything behind the HTTP face.

    Args:
        config: the configuration.
        painter: what draws; it belongs to the service from now on.
        policies: a fixed policy set for a server without policy file, else None.
        admins: ids of tenants' keys that administer too (the local server's one key).

    Raises:
        PolicyError: if the policy file or the configuration does not suit.
        AuditError: if the audit database cannot be opened.
    """

    def __init__(
        self,
        config: ServerConfig,
        painter: Paints,
        policies: PolicySet | None = None,
        admins: Sequence[KeyTable] = (),
    ) -> None:
        self.config = config
        self.painter = painter
        facts = painter.facts
        facts.check_steps(config.drawing.max_steps)
        self.sizes = tuple(_sides(size) for size in config.drawing.sizes) or (facts.native_size,)
        for width, height in self.sizes:
            facts.check_size(width, height)
        self.model_hash = facts.model_hash
        self._admins = KeyRing({key.id: (key.hash, "") for key in (*config.admin_keys, *admins)})
        self.audit = AuditLog(config.audit.url or "sqlite:///audit.sqlite3", config.audit.prompts)
        source = policies or config.policies
        if source is None:
            raise ValueError("a service without a policy file needs a policy set")
        self.keeper = Keeper(config.membranes, source, self.painter.fit)
        self.queue = FairQueue(config.limits.queue_rows, config.limits.tenant_rows)
        self.figures = Figures()
        self.figures.waiting.set_function(lambda: len(self.queue))
        self.figures.state.set_function(lambda: self.keeper.state.number)
        self.figures.problems.set_function(lambda: len(self.keeper.state.problems))
        self.figures.replicas.set_function(lambda: painter.calls(0))
        self.worker = Worker(self.painter, self.queue, lambda: self.keeper.state, self.figures)
        self._remembered = Remembered()
        self.started = int(time.time())

    @classmethod
    def load(
        cls, config: ServerConfig, policies: PolicySet | None = None, admins: Sequence[KeyTable] = ()
    ) -> "Service":
        """Load the configured model, into this process or into replicas, and return the service.

        Raises:
            ModelError: if it cannot be loaded.
            ConfigError: if replicas cannot be started, or end before they were asked.
        """
        painter: Paints
        if config.ray is None:
            pipe = load_model(config.model, device=config.device, dtype=config.dtype)
            painter = Painter(pipe, config.drawing.batch_rows)
        else:
            painter = Fleet(config)
        try:
            return cls(config, painter, policies, admins)
        except ReplicaLost as error:
            painter.close()
            raise ConfigError(f"the replicas ended while the server started: {error}") from error
        except BaseException:
            painter.close()
            raise

    def recall(self, key: str) -> Caller | None:
        """Return the caller of a key that was found right before; takes microseconds."""
        return self._caller(
            self._admins.recall(key, self._remembered), self.keeper.state.policies.keys.recall(key, self._remembered)
        )

    def verify(self, key: str) -> Caller | None:
        """Return the caller of a key, or None; takes tens of milliseconds."""
        return self._caller(
            self._admins.verify(key, self._remembered), self.keeper.state.policies.keys.verify(key, self._remembered)
        )

    def jobs_for(self, asked: ImageRequest, tenant: str) -> list[Job]:
        """Return the rows of a request, checked against the server's limits.

        Raises:
            RefusedError: 400 or 404 with the field at fault.
        """
        limits, drawing = self.config.limits, self.config.drawing
        if asked.model not in (None, self.config.model):
            raise _bad(f"this server serves {self.config.model!r}", "model", status=404, code="model_not_found")
        if not asked.prompt.strip():
            raise _bad("the prompt is empty; say what to draw", "prompt")
        for field in ("prompt", "negative_prompt"):
            if len(getattr(asked, field)) > limits.prompt_chars:
                raise _bad(f"{field} has more than {limits.prompt_chars} characters", field)
        if asked.n > limits.images:
            raise _bad(f"n is {asked.n}; one request may ask for {limits.images}", "n")
        steps, guidance = asked.steps or drawing.steps, asked.guidance or drawing.guidance
        if steps > drawing.max_steps:
            raise _bad(f"steps is {steps}; this server allows {drawing.max_steps}", "steps")
        if guidance > drawing.max_guidance:
            raise _bad(f"guidance is {guidance:g}; this server allows {drawing.max_guidance:g}", "guidance")
        width, height = self._size(asked.size)
        seed = asked.seed if asked.seed is not None else secrets.randbelow(2**48)
        if seed + asked.n > 2**63:
            raise _bad("seed + n is more than 2**63", "seed")
        shape = CallShape(steps, guidance, width, height)
        deadline = time.monotonic() + limits.deadline_seconds
        return [
            Job(tenant, asked.prompt, asked.negative_prompt, seed + j, asked.erase, shape, deadline)
            for j in range(asked.n)
        ]

    def finish(self, asked: ImageRequest, jobs: Sequence[Job], drawn: Sequence[Drawn]) -> Finished:
        """Encode pictures and write their records; blocks for milliseconds.

        Raises:
            RefusedError: 503 if the records cannot be written: no picture leaves without one.
        """
        request = secrets.token_hex(16)
        records: list[Record] = []
        pictures: list[Picture] = []
        for job, one in zip(jobs, drawn, strict=True):
            data = _encoded(one.image, asked.output_format)
            image = secrets.token_hex(16)
            records.append(self._record(request, image, asked, job, one, hashlib.sha256(data).hexdigest()))
            pictures.append(
                Picture(
                    b64_json=base64.b64encode(data).decode(),
                    seed=job.seed,
                    id=image,
                    membranes=_explained(one) if self.config.explain else None,
                )
            )
        try:
            self.audit.write(records)
        except AuditError as error:
            _log.error("%d pictures of %r are not handed out: %s", len(records), jobs[0].tenant, error)
            raise RefusedError(
                "the record of your pictures could not be written, so they are not handed out; tell the operator of "
                "the server",
                status=503,
                code="audit_unavailable",
            ) from error
        for job, one in zip(jobs, drawn, strict=True):
            self.figures.pictures.labels(job.tenant, one.plan.policy).inc()
            for acting, decision in zip(one.plan.acting, one.decisions, strict=True):
                if decision.gamma:
                    self.figures.opened.labels(acting.shelved.concept).inc()
        return Finished(request, tuple(pictures), tuple(drawn))

    def close(self) -> None:
        """Stop drawing and close the audit log."""
        self.worker.stop(self.config.limits.drain_seconds)
        self.audit.close()

    def _caller(self, admin: str | None, tenant: str | None) -> Caller | None:
        return None if admin is None and tenant is None else Caller(tenant, admin is not None)

    def _size(self, size: str) -> tuple[int, int]:
        found = self.sizes[0] if size == "auto" else _sides(size)
        if found not in self.sizes:
            known = ", ".join(f"{width}x{height}" for width, height in self.sizes)
            raise _bad(f"size {size!r} is not served; served: {known}", "size")
        return found

    def _record(self, request: str, image: str, asked: ImageRequest, job: Job, one: Drawn, picture_hash: str) -> Record:
        plan, shape = one.plan, job.shape
        return Record(
            image=image,
            request=request,
            tenant=job.tenant,
            user=asked.user,
            policy=plan.policy,
            policy_version=plan.version,
            state=plan.state,
            prompt=job.prompt,
            negative=job.negative,
            seed=job.seed,
            steps=shape.steps,
            guidance=shape.guidance,
            width=shape.width,
            height=shape.height,
            model=self.config.model,
            model_hash=self.model_hash,
            membranes=tuple(
                {
                    "concept": acting.shelved.concept,
                    "sha256": acting.shelved.sha256,
                    "source": acting.source,
                    "rule": acting.rule,
                    "strength": acting.strength,
                    "gamma": decision.gamma,
                    "reason": decision.reason,
                }
                for acting, decision in zip(plan.acting, one.decisions, strict=True)
            ),
            missing=plan.missing,
            picture_hash=picture_hash,
        )


def _explained(one: Drawn) -> list[Explanation]:
    return [
        Explanation(concept=a.shelved.concept, gamma=d.gamma, reason=d.reason, source=a.source)
        for a, d in zip(one.plan.acting, one.decisions, strict=True)
    ]


def _encoded(image: Image.Image, form: str) -> bytes:
    stream = io.BytesIO()
    options = {"quality": 95} if form == "jpeg" else {"lossless": True} if form == "webp" else {}
    image.save(stream, format=_FORMATS[form], **options)
    return stream.getvalue()


def _sides(size: str) -> tuple[int, int]:
    width, height = (int(side) for side in re.split("x", size))
    return width, height


def _bad(message: str, param: str, *, status: int = 400, code: str = "invalid_value") -> RefusedError:
    return RefusedError(message, status=status, code=code, param=param)
