"""Making K membranes: one by one, side by side, and jointly, in processor time and in denoiser rows.

    OMP_NUM_THREADS=1 python benchmarks/together.py --at-once 1 --at-once 2 --at-once 4

A row that is differentiated counts three times (forward, and about twice that backward). "ceiling" is the ratio of
rows to one by one; "reached" is the ratio of processor seconds. First a warm-up run, then all ways in turn `--repeats`
times; medians. Gates are left out: they cost the same in every way. Writes `benchmarks/results/together.json`.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from semipermeable import TrainConfig, __version__, zoo
from semipermeable.training import Workshop, captions_for, enrich, train
from semipermeable.training.together import Task, train_together

OBJECTS = ("cat", "dog", "rose", "wolf", "fox", "tulip", "lion", "horse")


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


def main():
    """Time every way at every K."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at-once", action="append", type=int, required=True)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "together.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    pipe, spec = zoo.load("emoji"), zoo.spec("emoji")
    rows = Rows(pipe.unet)
    config = TrainConfig.from_preset("fast", num_steps=given.steps)
    concepts = [enrich(name, spec) for name in OBJECTS[: max(given.at_once)]]
    tasks = [Task(concept, captions_for(concept, spec)) for concept in concepts]
    workshop = Workshop(pipe)
    exhaust(train(workshop, tasks[0].concept, tasks[0].captions, TrainConfig.from_preset("fast", num_steps=1), seed=0))
    found = []
    for count in given.at_once:
        group = tasks[:count]

        def one_by_one(group=group):
            shared = Workshop(pipe)
            for task in group:
                exhaust(train(shared, task.concept, task.captions, config, seed=0))

        ways = {
            "one by one": one_by_one,
            "side by side": lambda group=group: exhaust(train_together(Workshop(pipe), group, config, seed=0)),
            "jointly": lambda group=group: exhaust(train_together(Workshop(pipe), group, config, seed=0, joint=True)),
        }
        measured = {way: [] for way in ways}
        for _ in range(given.repeats):
            for way, work in ways.items():
                measured[way].append(timed(rows, work))
        base_seconds = statistics.median(seconds for seconds, _ in measured["one by one"])
        base_rows = measured["one by one"][0][1]
        for way, runs in measured.items():
            seconds = statistics.median(seconds for seconds, _ in runs)
            cell = {"membranes": count, "way": way, "processor_seconds": round(seconds, 2), "rows": runs[0][1]}
            cell |= {"reached": round(base_seconds / seconds, 3), "ceiling": round(base_rows / runs[0][1], 3)}
            found.append(cell)
            print(cell, flush=True)
    result = {
        "steps": given.steps,
        "repeats": given.repeats,
        "versions": {"semipermeable": __version__, "torch": torch.__version__},
        "cells": found,
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
