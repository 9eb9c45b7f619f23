"""Figures of a demo that reaches every bar, for tests of bars, tables and reports."""

import torch

from semipermeable.evaluation.records import BeforeAfter, Combined, ConceptFigures, DemoResult
from semipermeable.generation import Drawing, Job
from semipermeable.permeability import TraceRow
from semipermeable.rates import Rate


def good_figures(name="cat", kind="object", **changes):
    pair = BeforeAfter(Rate(94, 96), Rate(2, 96))
    kept = BeforeAfter(Rate(100, 106), Rate(100, 106))
    values = {
        "name": name,
        "kind": kind,
        "twins": ("cat face", "lion") if kind == "object" else (),
        "train_seconds": 21.5,
        "steps": 60,
        "membrane_bytes": 164528,
        "membrane_sha256": "ab" * 32,
        "target": pair,
        "target_or_namesake": pair,
        "target_or_twin": BeforeAfter(Rate(95, 96), Rate(9, 96)),
        "other_axis": BeforeAfter(Rate(95, 96), Rate(90, 96)),
        "kept": kept,
        "kept_open": BeforeAfter(Rate(100, 106), Rate(99, 106)),
        "wordings_opened": Rate(12, 12),
        "neighbours_closed": Rate(2544, 2544),
        "wordings_missed": (),
        "neighbours_opened": (),
    }
    return ConceptFigures(**{**values, **changes})


def good_result(**changes):
    values = {
        "model": "emoji",
        "device": "cpu",
        "seed": 0,
        "quick": False,
        "concepts": (good_figures(), good_figures("neon", "style")),
        "combined": Combined(
            object_seen=BeforeAfter(Rate(24, 24), Rate(0, 24)),
            style_seen=BeforeAfter(Rate(24, 24), Rate(1, 24)),
            kept=BeforeAfter(Rate(100, 106), Rate(100, 106)),
        ),
        "unrelated_rows": 106,
        "unrelated_equal": 106,
        "seconds": {"load": 3.0, "total": 250.0},
        "environment": {
            "versions": {"semipermeable": "0.1.0", "torch": "2.13.0"},
            "commit": None,
            "system": "Linux x86_64",
            "processor": "a <fast> one & more",
            "cores": 2,
            "threads": 2,
            "gpus": [],
        },
    }
    return DemoResult(**{**values, **changes})


def a_pair(prompt="a neon icon of a <b>cat</b>"):
    decision = TraceRow(prompt, "cat", 1.0, "name found: 'cat'", None, None, ("cat",))
    before, after = (torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    return Drawing(Job(prompt, 3), before), Drawing(Job(prompt, 3), after, (decision,))
