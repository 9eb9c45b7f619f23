"""Making N membranes in groups of K: one by one, side by side, and jointly, in processor time and in denoiser rows.

    OMP_NUM_THREADS=1 python benchmarks/together.py --concepts 50 --at-once 4 --steps 12 --repeats 1
    OMP_NUM_THREADS=1 python benchmarks/together.py --concepts 50 --at-once 50 --steps 12 --repeats 1 --out all.json

A row that is differentiated counts three times (forward, and about twice that backward). "ceiling" is the ratio of
one by one's rows to a way's, "reached" that of processor seconds, "share" the part of the ceiling that is reached: the
bar is 0.7 for "jointly", and a "reached" of 1 for "side by side", which makes the same membranes as one by one. All are
ratios within one run: first a warm-up, then all ways in turn `--repeats` times; medians. Gates are left out: they cost
the same in every way. Texts are encoded once for all groups of a way, as `erase_many` does. Writes
`benchmarks/results/together.json`.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from semipermeable import TrainConfig, __version__, zoo
from semipermeable.training import Workshop, captions_for, enrich, train
from semipermeable.training.many import AT_ONCE
from semipermeable.training.together import Task, train_together

FIRST = ("cat", "dog", "rose", "wolf", "fox", "tulip", "lion", "horse")
"""The objects of a small run; a larger one goes on with the others of the model in its order."""
MOST = 50


class Rows:
    """Counts rows of the denoiser's calls."""

    def __init__(self, denoiser):
        self.count = 0
        denoiser.register_forward_pre_hook(self._add)

    def _add(self, _module, args):
        self.count += len(args[0]) * (3 if torch.is_grad_enabled() else 1)


def exhaust(steps):
    """Run a generator to its end."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def timed(rows, work):
    """Return processor seconds and rows of a piece of work."""
    rows.count, began = 0, time.process_time()
    work()
    return time.process_time() - began, rows.count


def one_by_one(pipe, tasks, config):
    """Train every membrane by itself."""
    workshop = Workshop(pipe)
    for task in tasks:
        exhaust(train(workshop, task.concept, task.captions, config, seed=0))


def in_groups(pipe, tasks, config, size, *, joint):
    """Train groups of `size`, of which the last may be smaller."""
    workshop = Workshop(pipe)
    for start in range(0, len(tasks), size):
        exhaust(train_together(workshop, tasks[start : start + size], config, seed=0, joint=joint))


def ways_of(pipe, tasks, config, sizes):
    """Return (group size, way) to a function that does it."""
    ways = {(1, "one by one"): lambda: one_by_one(pipe, tasks, config)}
    for size in sizes:
        for way, joint in (("side by side", False), ("jointly", True)):
            ways[size, way] = lambda size=size, joint=joint: in_groups(pipe, tasks, config, size, joint=joint)
    return ways


def cells_of(measured):
    """Return the figures of every way; `measured` holds (seconds, rows) of each repeat."""
    base = measured[1, "one by one"]
    base_seconds, base_rows = statistics.median(seconds for seconds, _ in base), base[0][1]
    for (size, way), runs in measured.items():
        seconds, rows = statistics.median(seconds for seconds, _ in runs), runs[0][1]
        reached, ceiling = base_seconds / seconds, base_rows / rows
        cell = {"at_once": size, "way": way, "processor_seconds": round(seconds, 2), "rows": rows}
        cell |= {"reached": round(reached, 3), "ceiling": round(ceiling, 3), "share": round(reached / ceiling, 3)}
        yield cell


def main():
    """Time every way at every group size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", type=int, default=4, help=f"how many, from 1 to {MOST}")
    parser.add_argument("--at-once", action="append", type=int, help="group size; repeatable; default: 4, and all")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "together.json")
    given = parser.parse_args()
    if not 1 <= given.concepts <= MOST:
        parser.error(f"--concepts goes from 1 to {MOST}")
    sizes = list(dict.fromkeys(given.at_once or (AT_ONCE, given.concepts)))
    if min(sizes) < 1:
        parser.error("--at-once is at least 1")
    torch.set_num_threads(1)
    pipe, spec = zoo.load("emoji"), zoo.spec("emoji")
    rows = Rows(pipe.unet)
    config = TrainConfig.from_preset("fast", num_steps=given.steps)
    names = list(dict.fromkeys((*FIRST, *spec.object_names)))[: given.concepts]
    concepts = [enrich(name, spec) for name in names]
    tasks = [Task(concept, captions_for(concept, spec)) for concept in concepts]
    one_by_one(pipe, tasks[:1], TrainConfig.from_preset("fast", num_steps=1))
    ways = ways_of(pipe, tasks, config, sizes)
    measured = {key: [] for key in ways}
    for _ in range(given.repeats):
        for key, work in ways.items():
            measured[key].append(timed(rows, work))
            print(*key, *measured[key][-1], flush=True)
    cells = list(cells_of(measured))
    for cell in cells:
        print(cell, flush=True)
    result = {
        "concepts": names,
        "steps": given.steps,
        "repeats": given.repeats,
        "versions": {"semipermeable": __version__, "torch": torch.__version__},
        "cells": cells,
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
