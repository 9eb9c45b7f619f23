"""Find settings for rivals on the bundled model, on concepts that no table contains.

    python benchmarks/tune_rivals.py                      # everything that is missing, cheap erasers first
    python benchmarks/tune_rivals.py --only uce rece      # some of them
    python benchmarks/tune_rivals.py --seeds 2            # more pictures

Each candidate erases "cat" and "neon", one at a time, and draws 16 pictures for each in 12 steps: half of the concept,
half of others, near twins first. Candidates are compared by the harmonic mean of UA, IRA and CRA. Shards lie in
`out/tune` and are never drawn twice, so that a stopped run goes on; `benchmarks/results/tune_rivals.json` holds every
candidate and on how many pictures it was judged, none of which is run again on as many, and the best of each eraser
among those judged on the same number (as more candidates were, then on more pictures), which is also written to
`erasers/tuned.json`, where `NAME:tuned` is read from, and to the table of `docs/evaluation.md`. Afterwards
`write_experiments.py` adds the experiments of what was found.
"""

import argparse
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch

from semipermeable import zoo
from semipermeable.cli.options import progress_bar, silence_libraries
from semipermeable.evaluation.benchmarks.emoji import Sheaf, bound
from semipermeable.evaluation.benchmarks.plan import Sampler
from semipermeable.evaluation.environment import describe_environment
from semipermeable.evaluation.erasers.registry import card_table
from semipermeable.evaluation.erasers.tuned import FOUND, tuned_settings
from semipermeable.evaluation.runner import RunPlan, Tools, run

RESULTS = Path(__file__).parent / "results" / "tune_rivals.json"
PAGE = Path(__file__).parent.parent / "docs" / "evaluation.md"
CONCEPTS = ("cat", "neon")
PER_ROLE = 8
SPM = [
    f"num_steps=300,warmup_steps=50,learning_rate={rate},anchor_weight={weight}"
    for rate, weight in ((1e-3, 1e3), (3e-3, 1e3), (3e-3, 30.0), (1e-2, 30.0), (3e-3, 3.0))
]
SPM_FURTHER = [
    f"num_steps=300,warmup_steps=50,learning_rate={rate},anchor_weight={weight}{eta}"
    for rate, weight, eta in (
        (3e-3, 30.0, ",negative_guidance=2.0"),
        (1e-2, 3.0, ""),
        (1e-2, 3.0, ",negative_guidance=2.0"),
    )
]
"""Where the paper's SPM erases all at one of the first, its code's does not."""
GRID = {
    "uce": [
        "uce",
        "uce:keep_weight=0.02",
        "uce:keep_weight=1",
        "uce:ridge=0.05",
        "uce:ridge=5",
        "uce:keep_weight=1,ridge=5",
        "uce:keep_weight=0.02,ridge=0.05",
    ],
    "mace-closed-form": [
        "mace-closed-form",
        "mace-closed-form:ridge=0.1",
        "mace-closed-form:keep_weight=0.1,ridge=0.1",
        "mace-closed-form:keep_weight=0.02,ridge=0.1",
        "mace-closed-form:keep_weight=1,ridge=0.1",
    ],
    "speed": [
        "speed",
        "speed:edited=kv",
        "speed:threshold=1",
        "speed:edited=kv,threshold=1",
        "speed:edited=kv,threshold=0.01",
        "speed:edited=kv,threshold=0.0001",
    ],
    "rece": [
        "rece",
        "rece:num_rounds=3,recall_ridge=0.1",
        "rece:num_rounds=2",
        "rece:keep_weight=1",
        "rece:keep_weight=1,num_rounds=2",
        "rece:keep_weight=1,ridge=5,num_rounds=2",
    ],
    "concept-ablation": [
        f"concept-ablation:num_pictures=64,sampling_steps=20,num_steps={steps},learning_rate={rate}"
        for steps, rate in ((100, 1e-4), (100, 1e-3), (200, 3e-4), (200, 1e-3))
    ],
    "esd-x": [
        f"esd-x:sampling_steps=20,num_steps={steps},learning_rate={rate},negative_guidance={eta}"
        for steps, rate, eta in ((200, 1e-4, 1.0), (200, 3e-4, 1.0), (200, 1e-3, 1.0), (200, 3e-4, 2.0))
    ],
    "esd-u": [
        f"esd-u:sampling_steps=20,num_steps={steps},learning_rate={rate},negative_guidance={eta}"
        for steps, rate, eta in ((200, 3e-5, 1.0), (200, 1e-4, 1.0), (200, 3e-4, 1.0))
    ],
    "leco": [
        f"leco:sampling_steps=20,num_steps={steps},learning_rate={rate}"
        for steps, rate in ((200, 1e-3), (200, 3e-3), (200, 1e-2))
    ],
    "spm-paper": [f"spm-paper:{changes}" for changes in SPM],
    "spm-reference": [f"spm-reference:{changes}" for changes in (*SPM, *SPM_FURTHER)],
}
"""Eraser to candidates; those in closed form, which take seconds, first."""


def tuning_benchmark():
    """The pictures that candidates are compared on."""
    sheaf = Sheaf(zoo.spec("emoji"), "emoji-tuning@1")
    spec, looks = sheaf.spec, len(sheaf.spec.styles)
    name, style = CONCEPTS
    twins = spec.object(name).twins[:4]
    others = [*twins, *sheaf.others(name, without=(name, *twins))]
    rows = [sheaf.row("target", "plain", name, spec.styles[i % looks], i) for i in range(PER_ROLE)]
    rows += [
        sheaf.row("kept", "twin" if others[i] in twins else "other", others[i], spec.styles[i % looks], i)
        for i in range(PER_ROLE)
    ]
    cases = [sheaf.case(name, "object", [name], rows)]
    things, kept = sheaf.others(style, without=()), [other for other in spec.styles if other != style]
    rows = [sheaf.row("target", "plain", things[i], style, i) for i in range(PER_ROLE)]
    rows += [sheaf.row("kept", "other", things[PER_ROLE + i], kept[i % len(kept)], i) for i in range(PER_ROLE)]
    cases.append(sheaf.case(style, "style", [style], rows))
    sampler = Sampler(steps=12, batch_size=2 * PER_ROLE)
    return bound(sheaf, "Settings of rivals are chosen by these pictures.", cases, sampler)


def figures_of(path):
    """What a candidate is judged by."""
    content = json.loads(path.read_text(encoding="utf-8"))
    figures = {name: content["figures"][name]["value"] for name in ("harmonic", "ua", "ira", "cra")}
    costs = content["costs"]
    return {
        "eraser": content["eraser"],
        "pictures": costs["pictures"],
        **figures,
        "prepare_seconds": costs["prepare_seconds"],
    }


def tried_before():
    """Every candidate in the file, by eraser."""
    return json.loads(RESULTS.read_text(encoding="utf-8"))["tried"] if RESULTS.is_file() else {}


def judged(name, pictures):
    """The specs of an eraser's candidates that have been judged on as many pictures."""
    return {one["eraser"] for one in tried_before().get(name, ()) if one["pictures"] == pictures}


def joined(tried, name, new):
    """Return all candidates with a new one of an eraser, in the grid's order; its own earlier verdict gives way."""
    key = (new["eraser"], new["pictures"])
    mine = [one for one in tried.get(name, ()) if (one["eraser"], one["pictures"]) != key]
    order = {spec: number for number, spec in enumerate(GRID[name])}
    mine = sorted([*mine, new], key=lambda one: (one["pictures"], order.get(one["eraser"], len(order))))
    return {**tried, name: mine}


def best_of(candidates):
    """Return the best of those judged on one number of pictures: the number that most have, else the larger."""
    counts = Counter(one["pictures"] for one in candidates)
    pictures = max(counts, key=lambda count: (counts[count], count))
    return max((one for one in candidates if one["pictures"] == pictures), key=lambda one: one["harmonic"])


def recorded(name, new, device):
    """Write what has been found so far; the first of the best candidates wins."""
    tried = joined(tried_before(), name, new)
    found_best = {name: best_of(candidates) for name, candidates in tried.items()}
    # Of candidates that erase nothing none is the best: that rival keeps its paper's settings.
    best = {name: one["eraser"] for name, one in found_best.items() if one["harmonic"] > 0}
    content = {
        "concepts": CONCEPTS,
        "best": best,
        "tried": tried,
        "device": device,
        "environment": describe_environment(),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    fields = {name: words for name, spec in best.items() if (words := spec_fields(spec))}
    FOUND.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")
    tuned_settings.cache_clear()
    page = re.sub(
        r"\| eraser \| source .*?(?=\n\n)", lambda _: card_table(), PAGE.read_text(encoding="utf-8"), flags=re.S
    )
    PAGE.write_text(page, encoding="utf-8")


def spec_fields(spec):
    """The fields that a spec string changes."""
    _, _, words = spec.partition(":")
    changes = (word.partition("=") for word in words.split(",") if word)
    return {field: json.loads(value) if value[:1] in "0123456789-" else value for field, _, value in changes}


def main():
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=GRID, default=list(GRID))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out/tune"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    silence_libraries()
    benchmark = tuning_benchmark()
    # One model and one panel for all runs; each candidate is written down as soon as it is judged.
    plan = RunPlan(benchmark=benchmark, erasers=(), seeds=arguments.seeds)
    pipe = Tools().load(benchmark.model, plan.device, plan.dtype)
    panel = Tools().panel(benchmark, plan.judges)
    tools = Tools(load=lambda *_: pipe, panel=lambda *_: panel)
    for name in arguments.only:
        done = judged(name, 2 * 2 * PER_ROLE * arguments.seeds)
        for spec in [one for one in GRID[name] if one not in done]:
            _, path = run(replace(plan, erasers=(spec,)), arguments.out, bar=progress_bar, tools=tools)
            one = figures_of(path)
            recorded(name, one, plan.device)
            print(
                f"{one['harmonic']:.3f}  ua {one['ua']:.2f} ira {one['ira']:.2f} cra {one['cra']:.2f}  {spec}",
                flush=True,
            )


if __name__ == "__main__":
    main()
