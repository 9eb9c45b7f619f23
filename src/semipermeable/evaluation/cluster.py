"""Draw the shards of a benchmark on a Ray cluster: each part of the work is one task, and every task may be repeated.

A task draws into a folder of its own machine and sends back the files, so that no disk need be shared. Only this
process writes results: pictures first, then the shard's record. A worker that dies takes nothing with it but its own
unfinished task, which Ray starts again elsewhere; its shards reach the results once, because only a finished task
sends any. Membrane files that an eraser names travel with the task; a model is loaded by its name, which must mean the
same on every machine.
"""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from semipermeable.errors import ConfigError
from semipermeable.evaluation.results import Place
from semipermeable.evaluation.shards import Unit, draw_shards
from semipermeable.files.atomic import write_atomically

if TYPE_CHECKING:
    from semipermeable.evaluation.runner import Tools

__all__ = ["RETRIES", "draw_on_cluster"]

RETRIES = 5
"""How often a task is started again after its worker died."""

Files = dict[str, bytes]
"""Path → content."""


def draw_on_cluster(
    address: str, units: Sequence[Unit], model: str, root: Path, tools: "Tools", done: Callable[[int], None]
) -> None:
    """Draw units on a cluster and write their shards.

    Args:
        address: of the cluster, e.g. "10.0.0.1:6379" or "ray://10.0.0.1:10001"; "auto" is that of this machine.
        units: what to draw; one task each.
        model: what workers load.
        root: folder of the benchmark's results, on this machine.
        tools: functions of modules that workers can import.
        done: called with the number of pictures that have arrived.

    Raises:
        ConfigError: if Ray is not installed, no cluster answers, or a task failed.
    """
    ray = _ray()
    _connect(ray, address)
    try:
        gpus = 1 if any(torch.device(unit.device).type == "cuda" for unit in units) else 0
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(_draw)
        waiting = {task.remote(unit, model, tools, _files(unit.eraser)): unit for unit in units}
        arrived = 0
        while waiting:
            (first,), _ = ray.wait(list(waiting), num_returns=1)
            unit = waiting.pop(first)
            _keep(_result(ray, first, unit), unit, root)
            arrived += unit.num_pictures
            done(arrived)
    finally:
        ray.shutdown()


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "--cluster needs Ray, which is not installed: pip install 'semipermeable[cluster]'"
        ) from error
    return ray


def _connect(ray: Any, address: str) -> None:
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"no Ray cluster answers at {address!r} ({first}); start one with `ray start --head` and pass its address"
        ) from error


def _result(ray: Any, reference: Any, unit: Unit) -> Files:
    from ray.exceptions import RayError

    try:
        return ray.get(reference)
    except RayError as error:
        cases = ", ".join(dict.fromkeys(case.name for case, _ in unit.shards))
        raise ConfigError(
            f"drawing {unit.eraser!r} on {cases} failed on the cluster ({str(error).strip().splitlines()[-1]}); "
            "finished parts are kept: mend it and run the same command again"
        ) from error


def _files(spec: str) -> Files:
    """Return the contents of the files that an eraser's spec names, under the names used there."""
    named = [part.strip() for part in spec.partition(":")[2].split(",")]
    return {name: Path(name).read_bytes() for name in named if Path(name).is_file()}


def _draw(unit: Unit, model: str, tools: "Tools", files: Files) -> Files:
    """Draw a unit, on the worker; return everything written, by path below the benchmark's folder."""
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="spm-"))
    try:
        spec, root = _localised(unit.eraser, files, folder), folder / "results"
        pipe = tools.load(model, unit.device, unit.dtype)
        for _ in draw_shards(unit, tools.eraser(spec), pipe, root):
            pass
        written = sorted(path for path in root.rglob("*") if path.is_file())
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in written}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _localised(spec: str, files: Files, folder: Path) -> str:
    """Write an eraser's files down here, and return its spec with their paths."""
    if not files:
        return spec
    name, _, argument = spec.partition(":")
    parts: list[str] = []
    for number, part in enumerate(argument.split(",")):
        path = folder / f"{number}.safetensors"
        path.write_bytes(files[part.strip()])
        parts.append(str(path))
    return f"{name}:{','.join(parts)}"


def _keep(files: Files, unit: Unit, root: Path) -> None:
    """Write what a task sent: pictures, then records, so that a record never stands for pictures that are not there."""
    place = Place(root, unit.eraser)
    records = {place.shard(case.name, seed).relative_to(root).as_posix() for case, seed in unit.shards}
    for name in sorted(files, key=lambda name: (name in records, name)):
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, files[name])
