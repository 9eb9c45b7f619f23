"""Tasks on a Ray cluster: connecting to it, and gathering results of which none is lost and none comes twice.

A worker that dies takes nothing with it but its own unfinished task. This process notices, says so, and starts the task
again; Ray itself would do so without a word. A task's result arrives once, because only a finished task sends any.
"""

import contextlib
import logging
import socket
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, TypeVar

from semipermeable.errors import ConfigError

__all__ = ["RETRIES", "connect", "connected", "first_line", "gather", "ray_module"]

RETRIES = 5
"""How often a task is started again after its worker died."""
_KNOCK = 10.0
"""Seconds within which a machine must answer at an address."""
_PATIENCE = 30.0
"""Seconds without a result after which it is looked whether the cluster can hold a task at all."""

Job = TypeVar("Job")
Result = TypeVar("Result")
_log = logging.getLogger(__name__)


def ray_module() -> Any:
    """Return Ray.

    Raises:
        ConfigError: if it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "--cluster needs Ray, which is not installed: pip install 'semipermeable[cluster]'"
        ) from error
    return ray


def connect(ray: Any, where: str, options: Mapping[str, Any]) -> None:
    """Connect to a cluster, or start one.

    Args:
        ray: the module.
        where: for messages, e.g. "on this machine".
        options: of `ray.init`.

    Raises:
        ConfigError: if none answers.
    """
    try:
        ray.init(log_to_driver=False, configure_logging=False, **options)
    # A node that does not come up in time is a plain Exception of Ray's.
    except Exception as error:
        raise _silent(where, error) from error


def _silent(where: str, error: BaseException) -> ConfigError:
    return ConfigError(
        f"no Ray cluster answers {where} ({first_line(error)}); start one with `ray start --head` and pass its address"
    )


@contextlib.contextmanager
def connected(address: str) -> Generator[Any, None, None]:
    """Connect to a running cluster while the block lasts; gives the module Ray.

    Args:
        address: e.g. "10.0.0.1:6379" or "ray://10.0.0.1:10001"; "auto" is that of this machine.

    Raises:
        ConfigError: if Ray is not installed, or no cluster answers.
    """
    ray, where = ray_module(), f"at {address!r}"
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        # Ray itself would try for minutes.
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK).close()
        except (OSError, OverflowError) as error:
            raise _silent(where, error) from error
    connect(ray, where, {"address": address})
    try:
        yield ray
    finally:
        ray.shutdown()


def gather(
    ray: Any,
    work: Callable[..., Result],
    jobs: Iterable[Job],
    arguments: Callable[[Job], tuple[Any, ...]],
    told: Callable[[Job], str],
    *,
    num_gpus: int,
) -> Generator[tuple[Job, Result], None, None]:
    """Do every job on some worker, and give each result as it arrives. Closing the generator cancels what is left.

    Args:
        ray: the module, connected.
        work: what a task calls, a function of a module that workers can import.
        jobs: one task each.
        arguments: of `work`, for a job.
        told: what a job is, for messages, e.g. "erasing 'cat'".
        num_gpus: that each task has for itself, beside one CPU.

    Raises:
        ConfigError: if a task failed, or `RETRIES` + 1 workers died over it.
    """
    task = ray.remote(num_cpus=1, num_gpus=num_gpus, max_retries=0)(work)
    waiting = {task.remote(*arguments(job)): (job, 0) for job in jobs}
    try:
        while waiting:
            first = _first(ray, list(waiting), num_gpus)
            job, deaths = waiting.pop(first)
            try:
                result = _result(ray, first, told(job), last=deaths == RETRIES)
            except _WorkerLost as lost:
                _log.warning(
                    "%s was lost with its worker (%s); it starts again, %d of %d", told(job), lost, deaths + 1, RETRIES
                )
                waiting[task.remote(*arguments(job))] = (job, deaths + 1)
            else:
                yield job, result
    finally:
        for reference in waiting:
            with contextlib.suppress(Exception):
                ray.cancel(reference, force=True)


class _WorkerLost(Exception):  # noqa: N818 - no mistake: the task is started again
    """A task ended because its worker did."""


def _first(ray: Any, references: list[Any], num_gpus: int) -> Any:
    """Wait for any result; say once that the cluster can hold no task, if it stays so."""
    ready, _ = ray.wait(references, num_returns=1, timeout=_PATIENCE)
    if not ready:
        there = ray.cluster_resources()
        if there.get("CPU", 0) < 1 or there.get("GPU", 0) < num_gpus:
            _log.warning("the cluster has no worker that can hold a task (it has %s); waiting for one", there)
        ready, _ = ray.wait(references, num_returns=1)
    return ready[0]


def _result(ray: Any, reference: Any, what: str, *, last: bool) -> Any:
    from ray import exceptions

    deaths = (
        exceptions.WorkerCrashedError,
        exceptions.NodeDiedError,
        exceptions.LocalRayletDiedError,
        exceptions.ObjectLostError,
        exceptions.OutOfMemoryError,
    )
    try:
        return ray.get(reference)
    except exceptions.RayError as error:
        if isinstance(error, deaths) and not last:
            raise _WorkerLost(first_line(error).partition(". ")[0]) from error
        why = f"{RETRIES + 1} workers died: {first_line(error)}" if isinstance(error, deaths) else _last_line(error)
        raise ConfigError(
            f"{what} failed on the cluster ({why}); finished parts are kept: mend it and run the same command again"
        ) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, cut to a readable length."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _last_line(error: BaseException) -> str:
    """Return the last line of an error's text: of a task's, which ends in a traceback, the error itself."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
