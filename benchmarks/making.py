"""Recipes of one membrane side by side: what it erases, what it harms, how long it takes.

    OMP_NUM_THREADS=1 python benchmarks/making.py --concept church --concept guitar --concept neon

For each recipe and concept: train, hold the membrane open on every prompt, and judge as `ablation.py` does (target,
near twins, the other axis, kept objects and styles, doubt about the style; same prompts and noise for all). Seconds are
wall time beside processor time of all threads, which other programs on the machine do not stretch as much. Writes
`benchmarks/results/making.json` after every cell; those of the same commit, machine
and counts are not made again, others are refused (`--fresh` forgets them).
Only objects and styles used for tuning belong here; figures that are to be reported come from others.
"""

import argparse
import json
import platform
import subprocess
import time
from pathlib import Path

import torch
from ablation import measure

from semipermeable import __version__, attach, erase, zoo
from semipermeable.training import TrainConfig, Workshop
from semipermeable.training.surrogates import settled

GROUP = {"preset": "fast", "sibling_surrogate": False}
LONG = {"num_trajectories": 3, "sampling_steps": 12}
EARLIER = {**GROUP, "learning_rate": 1e-3, **LONG}
BY_REACH = {"preset": "instant", "sibling_surrogate": False}
AT_07 = {"negative_guidance": 0.7, "style_negative_guidance": 0.7}
GROUP_GONE = "instant, its group erased too"
RECIPES = {
    "instant": {"preset": "instant"},
    "instant towards the group, η 1 (before)": {**BY_REACH, "negative_guidance": 1.0, "style_negative_guidance": 0.7},
    "instant towards the group, η 0.7 (before)": {**BY_REACH, **AT_07},
    "instant by reach 1.4": {**BY_REACH, "reach": 1.4},
    "instant by reach 2": {**BY_REACH, "reach": 2.0},
    "instant by reach 1.7, wordings spared": {**BY_REACH, "reach": 1.7, "closed_form_spare": 0.95},
    "instant by reach 2, wordings spared": {**BY_REACH, "reach": 2.0, "closed_form_spare": 0.99},
    "instant, η 0.5": {"preset": "instant", "negative_guidance": 0.5},
    GROUP_GONE: {"preset": "instant"},
    "fast": {"preset": "fast"},
    "fast towards the group": GROUP,
    "fast towards the group, η 0": {**GROUP, "negative_guidance": 0.0},
    "fast towards the group by reach 2, wordings spared": {**GROUP, "reach": 2.0, "closed_form_spare": 0.99},
    "fast on 3 runs of 12 steps at 1e-3": EARLIER,
    "fast, η 1.5 (before)": {**EARLIER, "negative_guidance": 1.5, "style_negative_guidance": 0.7},
    "fast, η 1.25": {**EARLIER, "negative_guidance": 1.25, "style_negative_guidance": 0.7},
    "fast, η 1 at 1e-3": {**EARLIER, "negative_guidance": 1.0, "style_negative_guidance": 1.0},
    "fast, η 0.7 at 4e-3 (before)": {**GROUP, **AT_07, **LONG, "learning_rate": 4e-3},
    "fast, 60 steps of 12 rows": {
        **EARLIER,
        "negative_guidance": 1.5,
        "style_negative_guidance": 0.7,
        "num_steps": 60,
        "num_anchors": 8,
        "num_trajectories": 6,
        "sampling_steps": 20,
    },
}
FIGURES = ("target", "twins", "other_axis", "kept_objects", "kept_styles", "style_doubt")


def table(result):
    """Return the figures as a Markdown table, one row per recipe and concept."""
    lines = ["| concept | recipe | target | twins | other axis | kept objects | kept styles | doubt | wall s | cpu s |"]
    lines.append("|" + " --- |" * 10)
    for concept, cells in result["cells"].items():
        for recipe, cell in cells.items():
            shown = ["–" if cell[key] is None else f"{cell[key]:.2f}" for key in FIGURES]
            times = [f"{cell[key]:.1f}" if key in cell else "–" for key in ("wall", "busy")]
            lines.append(f"| {concept} | {recipe} | {' | '.join([*shown, *times])} |")
    return "\n".join(lines)


def asked_for(pipe, spec, concept, recipe):
    """Return what to erase: the name, or by one recipe an object whose siblings are being erased as well."""
    thing = spec.find(concept)
    if recipe != GROUP_GONE or thing is None:
        return concept
    siblings = (name for name in spec.groups[thing.group] if name != thing.name)
    return settled(Workshop(pipe), [concept, *siblings], TrainConfig())[0]


def make(pipe, spec, judge, concept, recipe, counts):
    """Train by one recipe and judge, open everywhere."""
    config = TrainConfig.from_preset(**RECIPES[recipe])
    wanted = asked_for(pipe, spec, concept, recipe)
    wall, busy = time.perf_counter(), time.process_time()
    membrane = erase(pipe, wanted, config=config, progress=False)
    spent = {"wall": round(time.perf_counter() - wall, 2), "busy": round(time.process_time() - busy, 2)}
    with attach(pipe, membrane, "open"):
        return {**measure(pipe, spec, judge, concept, *counts), **spent, "changed": RECIPES[recipe]}


def header(given):
    """Return what a reader needs to repeat the run."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "num_target": given.num_target,
        "num_kept": given.num_kept,
        "threads": given.threads,
        "machine": platform.machine(),
        "versions": {"semipermeable": __version__, "torch": torch.__version__},
        "commit": commit,
        "unet_sha256": zoo.info("emoji")["files"]["pipeline/unet/diffusion_pytorch_model.safetensors"]["sha256"],
    }


def main():
    """Make and judge every recipe for every concept that is not in the results yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concept", action="append", required=True)
    parser.add_argument("--recipe", action="append", choices=RECIPES, help="only these; repeatable")
    parser.add_argument("--num-target", type=int, default=24)
    parser.add_argument("--num-kept", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "making.json")
    parser.add_argument("--fresh", action="store_true", help="forget earlier cells")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    pipe, spec, judge = zoo.load("emoji"), zoo.spec("emoji"), zoo.judge("emoji")
    pipe.set_progress_bar_config(disable=True)
    counts = (given.num_target, given.num_kept)
    result = {**header(given), "cells": {}}
    if given.out.exists() and not given.fresh:
        known = json.loads(given.out.read_text(encoding="utf-8"))
        changed = [name for name in result if name != "cells" and result[name] != known.get(name)]
        if changed:
            parser.error(f"cells of {given.out} had another {', '.join(changed)}; give --fresh or another --out")
        result = known
    for recipe in given.recipe or RECIPES:
        for concept in given.concept:
            cells = result["cells"].setdefault(concept, {})
            if "base model" not in cells:
                cells["base model"] = measure(pipe, spec, judge, concept, *counts)
            if recipe in cells:
                continue
            cells[recipe] = make(pipe, spec, judge, concept, recipe, counts)
            print(concept, recipe, cells[recipe], flush=True)
            given.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(table(result))


if __name__ == "__main__":
    main()
