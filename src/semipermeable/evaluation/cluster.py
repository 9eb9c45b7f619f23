"""Draw the shards of a benchmark on a Ray cluster: each part of the work is one task, and every task may be repeated.

A task draws into a folder of its own machine and sends back the files, so that no disk need be shared. Only this
process writes results: pictures first, then the shard's record. A task that died with its worker is started again
(`semipermeable.cluster`). Membrane files that an eraser names travel with the task; a model is loaded by its name,
which must mean the same on every machine.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from semipermeable.cluster import connected, gather
from semipermeable.evaluation.results import Place
from semipermeable.evaluation.shards import Unit, draw_shards
from semipermeable.files.atomic import write_atomically

if TYPE_CHECKING:
    from semipermeable.evaluation.runner import Tools

__all__ = ["draw_on_cluster"]

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
    gpus = 1 if any(torch.device(unit.device).type == "cuda" for unit in units) else 0
    arrived = 0
    with connected(address) as ray:
        steps = gather(ray, _draw, units, lambda unit: (unit, model, tools, _files(unit.eraser)), _told, num_gpus=gpus)
        with contextlib.closing(steps):
            for unit, files in steps:
                _keep(files, unit, root)
                arrived += unit.num_pictures
                done(arrived)


def _told(unit: Unit) -> str:
    return f"drawing {unit.eraser!r} on {', '.join(dict.fromkeys(case.name for case, _ in unit.shards))}"


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
    """Write an eraser's files down here, and return its spec with their paths; names of shipped membranes stay."""
    if not files:
        return spec
    name, _, argument = spec.partition(":")
    parts: list[str] = []
    for number, part in enumerate(map(str.strip, argument.split(","))):
        if part not in files:
            parts.append(part)
            continue
        path = folder / f"{number}.safetensors"
        path.write_bytes(files[part])
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
