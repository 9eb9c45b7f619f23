"""Membranes for many concepts on a Ray cluster: each group is one task, on whichever worker is free.

    for made in erase_on_cluster("auto", "emoji", concepts, load=load_for_training, out_dir="membranes"): ...

A task loads the model by its source, trains its group with the code that trains it here, and sends back the bytes of
the membranes' files, so that machines need not share a disk; only this process writes. A task that died with its
worker is started again (`semipermeable.cluster`): what is lost is the work on its group, and nothing comes twice.

A source must mean the same model everywhere. It is held against the hashes of the model that is loaded here, and a
membrane of another model is refused.
"""

import contextlib
import functools
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch

from semipermeable.cluster import connected, gather, ray_module
from semipermeable.concept import Concept
from semipermeable.errors import ConfigError
from semipermeable.files.loading import load_bytes
from semipermeable.files.native import to_bytes
from semipermeable.membrane import Membrane
from semipermeable.training.config import TrainConfig
from semipermeable.training.many import Made, Recipe, Run, make, plan
from semipermeable.training.progress import many_bar
from semipermeable.training.workshop import Workshop

__all__ = ["Load", "erase_on_cluster"]

Load = Callable[[str, str | None], Any]
"""Makes the pipeline of a source on a device (None: the best there is)."""


def erase_on_cluster(
    address: str,
    source: str,
    concepts: Sequence[str | Concept],
    *,
    load: Load,
    device: str | None = None,
    preset: str = "fast",
    seed: int = 0,
    config: TrainConfig | None = None,
    out_dir: str | PathLike[str] | None = None,
    at_once: int | None = None,
    joint: bool = False,
    orthogonal_to: Sequence[Membrane] = (),
    progress: bool = True,
) -> Generator[Made, None, None]:
    """Make membranes on a cluster, and give each as soon as it is saved; what `erase_each` does on this machine.

    Membranes are those that `erase_each` makes with one thread. Stopping cancels the tasks and keeps what is finished.

    Args:
        address: of the cluster, e.g. "10.0.0.1:6379" or "ray://10.0.0.1:10001"; "auto" is that of this machine.
        source: of the model, as every machine names it.
        concepts: see `erase_each`.
        load: a function of a module that workers can import, e.g. `semipermeable.generation.load_for_training`. Here it
            is called for the CPU, to know the model's hashes.
        device: of the tasks; None and "cuda" give each task a GPU of its own, None only if the cluster has any.
        preset: see `erase`.
        seed: of every membrane.
        config: settings instead of a preset.
        out_dir: folder on this machine, see `erase_each`.
        at_once: size of a group, see `erase_each`; also of the closed form's, which are made one after the other.
        joint: see `erase_each`; without `at_once` all concepts are one group, hence one task.
        orthogonal_to: see `erase`.
        progress: show a bar of finished membranes.

    Yields:
        One entry per concept: first those found, then as they arrive.

    Raises:
        ConfigError: if an option does not fit, Ray is not installed, no cluster answers, it has no GPU although "cuda"
            was asked for, a task failed, or a worker loaded another model.
        OutputError: if the folder holds another membrane under a name, found before connecting.
    """
    chosen = config or TrainConfig.from_preset(preset)
    for name in ("checkpoint", "preview", "tensorboard"):
        if getattr(chosen, name) is not None:
            raise ConfigError(f"{name} follows one training on this machine; leave it out on a cluster")
    recipe = Recipe(chosen, seed, tuple(orthogonal_to), joint)
    ray_module()
    run = plan(Workshop(load(source, "cpu")), recipe, concepts, out_dir, at_once)
    with many_bar(len(run.wanted), 0, shown=progress) as advance:
        for made in run.found():
            advance(made.membrane.name, 1, 1)
            yield made
        groups = run.left()
        if not groups:
            return
        with connected(address) as ray:
            place, num_gpus = _placement(ray, device)
            order = _Order(load, source, place, chosen, seed, tuple(map(to_bytes, orthogonal_to)), joint)
            steps = gather(
                ray,
                _work,
                groups,
                lambda group: (order, [run.wanted[index] for index in group]),
                lambda group: f"erasing {_names(run, group)}",
                num_gpus=num_gpus,
            )
            with contextlib.closing(steps):
                for group, files in steps:
                    finished = [_kept(run, index, data, source) for index, data in zip(group, files, strict=True)]
                    advance(", ".join(made.membrane.name for made in finished), 1, len(finished))
                    yield from finished


@dataclass(frozen=True, slots=True)
class _Order:
    """What every task is told."""

    load: Load
    source: str
    device: str | None
    config: TrainConfig
    seed: int
    orthogonal_to: tuple[bytes, ...]
    joint: bool


def _placement(ray: Any, device: str | None) -> tuple[str | None, int]:
    """Return the device of tasks and how many GPUs each is given; a task sees no other GPU than its own."""
    kind, there = (device or "").partition(":")[0], ray.cluster_resources().get("GPU", 0)
    if kind == "cuda" and not there:
        raise ConfigError(f"device {device!r} was asked for, and the cluster has no GPU; use --device cpu")
    return ("cuda", 1) if there and kind in ("", "cuda") else (device, 0)


def _work(order: _Order, concepts: Sequence[Concept]) -> list[bytes]:
    """Make a group, on the worker; return the bytes of its membranes' files."""
    torch.set_num_threads(1)
    beside = tuple(map(load_bytes, order.orthogonal_to))
    recipe = Recipe(order.config, order.seed, beside, order.joint)
    workshop = _workshop(order.load, order.source, order.device)
    return [to_bytes(membrane) for membrane in make(workshop, recipe, concepts, lambda _name, _steps, _count: None)]


@functools.lru_cache(maxsize=1)
def _workshop(load: Load, source: str, device: str | None) -> Workshop:
    """Load the model once for all tasks of a worker's process, which ends with the run."""
    return Workshop(load(source, device))


def _kept(run: Run, index: int, data: bytes, source: str) -> Made:
    """Save a membrane that arrived, after a look at whether it is the one that was ordered."""
    membrane = load_bytes(data)
    differs = run.differences(index, membrane)
    if differs:
        raise ConfigError(
            f"a worker sent another membrane of {membrane.name!r} than was asked for ({', '.join(differs)} differ); "
            f"{source!r} and the package must be the same on every machine"
        )
    return run.keep(index, membrane)


def _names(run: Run, group: Sequence[int]) -> str:
    return ", ".join(repr(run.wanted[index].name) for index in group)
