"""Many replicas behind one server: a Ray Serve deployment of `Replica`, used like a `Painter`.

HTTP, keys, policies, queue, deadlines and records stay in the server's process, which needs no GPU; a replica is sent
one call at a time. So fairness and limits hold over all replicas, records have one writer, and a policy is in force for
every replica at once: each call carries the membranes that must act on it.

A replica that dies takes nothing with it. A call has no effect before its pictures are back, and its noise depends on
the seeds alone; `ReplicaLost` lets the worker draw the same rows elsewhere.

Ray Serve's own HTTP proxy is not started. It reads heads without a time limit, and answers 500 for a request whose
replica died.
"""

import hashlib
import logging
import math
import os
import re
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from semipermeable import __version__
from semipermeable.cluster import connect, first_line
from semipermeable.errors import AttachError, ConfigError, PermeabilityError, SiteError
from semipermeable.files.loading import load_bytes
from semipermeable.files.native import to_bytes
from semipermeable.membrane import Membrane
from semipermeable.server.config import RayTable, ServerConfig
from semipermeable.server.jobs import CallShape
from semipermeable.server.library import Shelved
from semipermeable.server.painting import Abandoned, Asked, Facts, Painted, ReplicaLost, Standing
from semipermeable.server.replica import ActingOrder, Drawing, Order, Parcel, Refusal, Replica, RowOrder

__all__ = ["Fleet"]

_log = logging.getLogger("semipermeable.server")
_DEPLOYMENT = "replica"
_ASK_SECONDS = 0.1
"""How often a waiting call asks whether it is still wanted."""
_COUNT_SECONDS = 0.5
"""For how long a count of replicas is taken to be true."""
_FIT_SECONDS = 120.0
_TELL_SECONDS = 15.0
_STORE_BYTES = 256 * 2**20
"""Of the object store of a cluster started here; membranes and pictures that do not fit are spilled to disk."""


class Fleet:
    """Replicas of a model on a Ray cluster; safe for several threads.

    Args:
        config: the model, and where and how many (`config.ray`).

    Raises:
        ConfigError: if Ray is not installed, no cluster answers, it cannot hold the replicas, or the model cannot be
            loaded there.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._table = config.ray or RayTable()
        _prepare(self._table)
        on_term = signal.getsignal(signal.SIGTERM)
        self._ray, self._serve = _modules()
        self._lock = threading.Lock()
        self._running, self._counted = 0, -_COUNT_SECONDS
        self._parcel: tuple[str, Any] = ("", None)
        self._references: dict[str, Any] = {}
        _connect(self._ray, self._table)
        try:
            self._handle = self._deploy(config)
            self._facts = self._first_facts()
        except BaseException:
            self.close()
            raise
        if threading.current_thread() is threading.main_thread():
            # Ray's own handler, which exits with a code that means failure, is of use until here; HTTP ends itself.
            signal.signal(signal.SIGTERM, on_term)

    @property
    def most_calls(self) -> int:
        """One call for each replica that there may be."""
        return self._table.most

    def calls(self, waiting: int) -> int:
        """Return the number of running replicas; one more if a full call waits and a replica may be added.

        That call waits in Ray Serve's own queue, which is what Serve's autoscaling looks at.

        Args:
            waiting: rows in the queue.
        """
        running = self._count()
        return running + 1 if 0 < running < self._table.most and waiting >= self.batch_rows else running

    @property
    def batch_rows(self) -> int:
        """Most rows of one call."""
        return self._facts.batch_rows

    @property
    def facts(self) -> Facts:
        """The model's, as the first replica told them; a replica that differs draws nothing."""
        return self._facts

    def standing(self) -> Standing:
        """Return whether a replica runs, and how many of how many."""
        running, wanted = self._count(), self._table.replicas
        message = "" if running >= wanted else f"{running} of {wanted} replicas run; see `ray status` and Ray's logs"
        return Standing(running > 0, message)

    def fit(self, membrane: Membrane) -> Membrane:
        """Have a replica give a membrane the denoiser's site names.

        Raises:
            SiteError: if it does not belong to this denoiser, or its gate cannot decide.
            ReplicaLost: if no replica answered in two minutes.
        """
        data, deadline = to_bytes(membrane), time.monotonic() + _FIT_SECONDS
        while True:
            try:
                found = self._result(self._handle.fit.remote(data), lambda: time.monotonic() > deadline)
                break
            except Abandoned as error:
                raise ReplicaLost(f"no replica looked at a membrane within {_FIT_SECONDS:g} seconds") from error
            except ReplicaLost:
                time.sleep(_ASK_SECONDS)
        if isinstance(found, str):
            raise SiteError(found)
        return load_bytes(found) if found != data else membrane

    def draw(
        self, shelf: Iterable[Shelved], rows: Sequence[Asked], shape: CallShape, unwanted: Callable[[], bool]
    ) -> list[Painted]:
        """Have a replica draw: see `Paints.draw`.

        Raises:
            AttachError: if the replica could not apply a membrane, or has another model.
            PermeabilityError: if a rule could not decide.
            MemoryError: if its memory does not suffice.
            Abandoned: if the call was stopped.
            ReplicaLost: if the replica died.
        """
        digest, parcel = self._pack(shelf)
        order = Order(self._facts.model_hash, shape, tuple(map(_row_order, rows)), digest, parcel)
        answer = self._result(self._handle.draw.remote(order), unwanted)
        if isinstance(answer, Drawing):
            return list(answer.painted)
        if not isinstance(answer, Refusal):
            raise TypeError(f"a replica answered with {type(answer).__name__}")
        if answer.kind == "memory":
            raise MemoryError(answer.message)
        raise (AttachError if answer.kind == "apply" else PermeabilityError)(answer.message)

    def close(self) -> None:
        """End the replicas, and the cluster if it was started here."""
        if not self._ray.is_initialized():
            return
        if self._table.address is not None:
            try:
                self._serve.delete(self._table.app)
            # Whatever a dying cluster raises, the connection to it is still to be closed.
            except Exception:
                _log.exception("Ray Serve's application %r could not be deleted", self._table.app)
        self._ray.shutdown()

    def _deploy(self, config: ServerConfig) -> Any:
        table = self._table
        gpus = _gpus(self._ray, config) if table.gpus is None else table.gpus
        self._refuse_what_cannot_run(gpus)
        _log.info("%d to %d replicas with %g CPUs and %g GPUs each", table.replicas, table.most, table.cpus, gpus)
        size: dict[str, Any] = {"num_replicas": table.replicas}
        if table.most > table.replicas:
            # One call at a time is what a replica can do: any call that waits beside it is work for another replica.
            size = {
                "autoscaling_config": {
                    "min_replicas": table.replicas,
                    "max_replicas": table.most,
                    "target_ongoing_requests": 1,
                    "upscale_delay_s": 5.0,
                    "downscale_delay_s": table.idle_seconds,
                }
            }
        deployment = self._serve.deployment(
            Replica,
            name=_DEPLOYMENT,
            ray_actor_options={"num_cpus": table.cpus, "num_gpus": gpus},
            max_ongoing_requests=1,
            health_check_period_s=5.0,
            graceful_shutdown_timeout_s=config.limits.deadline_seconds,
            **size,
        )
        # Paths mean the same on every machine only if they are whole.
        model = str(Path(config.model).absolute()) if Path(config.model).exists() else config.model
        bound = deployment.bind(model, config.device, config.dtype, config.drawing.batch_rows)
        self._serve.start(proxy_location="Disabled")
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        if table.app in self._serve.status().applications:
            # Of a server that was killed: its replicas may hold another model.
            _log.warning("Ray Serve's application %r is there already; it is replaced", table.app)
            self._serve.delete(table.app)
        # Not `serve.run`: it waits without a word, for ever if the cluster has no room.
        target = self._serve.RunTarget(target=bound, name=table.app, route_prefix=None)
        self._serve.run_many([target], wait_for_applications_running=False)
        self._wait_for_one()
        return self._serve.get_deployment_handle(_DEPLOYMENT, table.app)

    def _refuse_what_cannot_run(self, gpus: float) -> None:
        """Refuse replicas that the cluster of this machine can never hold; a cluster elsewhere may still grow.

        Raises:
            ConfigError: if it has fewer GPUs than they need.
        """
        if self._table.address is not None:
            return
        there = float(self._ray.cluster_resources().get("GPU", 0))
        if self._table.most * gpus > there:
            raise ConfigError(
                f"{self._table.most} replicas with {gpus:g} GPUs each need {self._table.most * gpus:g}; this machine "
                f"has {there:g}. Ask for fewer --replicas, set ray.gpus, or name a cluster with --ray-address"
            )

    def _wait_for_one(self) -> None:
        """Wait until a replica has loaded the model.

        Raises:
            ConfigError: if it cannot.
        """
        told = time.monotonic()
        while True:
            found = self._serve.status().applications.get(self._table.app)
            if found is not None and "FAILED" in str(found.status):
                raise ConfigError(f"no replica could be started: {_reason(found)}")
            if self._count():
                return
            if time.monotonic() - told > _TELL_SECONDS:
                told = time.monotonic()
                _log.warning("no replica runs yet; the cluster has free: %s", self._ray.available_resources())
            time.sleep(_ASK_SECONDS)

    def _first_facts(self) -> Facts:
        version, facts = self._handle.facts.remote().result()
        if version != __version__:
            raise ConfigError(
                f"the cluster has semipermeable {version}, this server {__version__}; install the same everywhere"
            )
        return facts

    def _count(self) -> int:
        """Return how many replicas run; asked again within half a second, the answer is the same."""
        with self._lock:
            if time.monotonic() - self._counted >= _COUNT_SECONDS:
                self._running, self._counted = self._ask_count(), time.monotonic()
            return self._running

    def _ask_count(self) -> int:
        try:
            found = self._serve.status().applications.get(self._table.app)
        # Ray and gRPC raise classes of their own for a cluster that is gone; all mean that no replica can be counted.
        except Exception as error:
            _log.warning("Ray Serve does not say how its replicas are: %s", first_line(error))
            return 0
        deployment = found.deployments.get(_DEPLOYMENT) if found else None
        return int(deployment.replica_states.get("RUNNING", 0)) if deployment else 0

    def _pack(self, shelf: Iterable[Shelved]) -> tuple[str, Any]:
        """Return digest and reference of the parcel of these membranes, each put into the object store once."""
        members = [(one.file, one.sha256, one.membrane) for one in shelf]
        digest = hashlib.sha256(repr([sha256 for _, sha256, _ in members]).encode()).hexdigest()
        with self._lock:
            if self._parcel[0] != digest:
                references = {
                    sha256: self._references.get(sha256) or self._ray.put(to_bytes(membrane))
                    for _, sha256, membrane in members
                }
                named = tuple((file, sha256, references[sha256]) for file, sha256, _ in members)
                # References that are not kept are given back when the last order that holds them is done.
                self._references = references
                self._parcel = (digest, self._ray.put(Parcel(digest, named)))
            return self._parcel

    def _result(self, response: Any, unwanted: Callable[[], bool]) -> Any:
        """Wait for an answer.

        Raises:
            Abandoned: if it is unwanted before it comes.
            ReplicaLost: if it will not come.
        """
        from ray.exceptions import RayError, RayTaskError
        from ray.serve.exceptions import RayServeException

        while True:
            try:
                return response.result(timeout_s=_ASK_SECONDS)
            except TimeoutError:
                if unwanted():
                    response.cancel()
                    raise Abandoned from None
            except RayTaskError as error:
                # The replica lives: its code failed, and would fail again.
                raise ValueError(f"a replica failed: {first_line(error)}") from error
            except (RayError, RayServeException) as error:
                raise ReplicaLost(first_line(error)) from error


def _row_order(row: Asked) -> RowOrder:
    acting = tuple(ActingOrder(one.shelved.sha256, one.rule, one.strength, one.source) for one in row.plan.acting)
    return RowOrder(row.prompt, row.negative, row.seed, acting)


def _prepare(table: RayTable) -> None:
    """Set what Ray reads from the environment when it is imported."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if table.address is None and "RAY_AUTH_MODE" not in os.environ:
        # Ray's ports are open on every address of the machine, and whoever is let in runs code.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _modules() -> tuple[Any, Any]:
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise ConfigError(
            f"replicas need Ray Serve ({first_line(error)}); "
            "install it with: pip install 'semipermeable[serve,cluster]'"
        ) from error
    return ray, serve


def _connect(ray: Any, table: RayTable) -> None:
    """Connect to the cluster, or start one on this machine without dashboard.

    Raises:
        ConfigError: if none answers.
    """
    options: dict[str, Any] = {"address": table.address}
    if table.address is None:
        options = {
            "address": "local",
            # Ray counts CPUs and does not bind them: replicas on few CPUs share them.
            "num_cpus": max(os.cpu_count() or 1, math.ceil(table.most * table.cpus)),
            "include_dashboard": False,
            "object_store_memory": _STORE_BYTES,
            "_node_ip_address": "127.0.0.1",
        }
    where = "on this machine" if table.address is None else f"at {table.address!r}"
    connect(ray, where, options)


def _gpus(ray: Any, config: ServerConfig) -> float:
    on_cpu = config.device is not None and config.device.split(":")[0] == "cpu"
    return 1.0 if not on_cpu and ray.cluster_resources().get("GPU", 0) else 0.0


def _reason(application: Any) -> str:
    """Return the last line of what Ray Serve says of a failed application: the exception."""
    texts = [application.message, *(one.message for one in application.deployments.values())]
    lines = [line.strip() for text in texts for line in str(text).splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (errors or lines or ["Ray Serve gives no reason"])[-1]
