"""`emoji-memorised` on the bundled model: it does know its canaries by heart, and the figures say so."""

import dataclasses
import json

import pytest

from evaluation.runner import fakes
from semipermeable.evaluation.benchmarks import benchmark
from semipermeable.evaluation.runner import RunPlan, run


@pytest.mark.slow
def test_the_base_model_reproduces_its_canaries_and_an_eraser_is_seen_to_stop_it(tmp_path):
    whole = benchmark("emoji-memorised")
    case = whole.case("the-varnok-seal")
    some = [row for tag, n in (("plain", 4), ("other canary", 6), ("same object", 6), ("same style", 4), ("other", 2))
            for row in [r for r in case.rows if r.tag == tag][:n]]  # fmt: skip
    small = dataclasses.replace(whole, cases=(dataclasses.replace(case, rows=tuple(some)),))
    plan = RunPlan(benchmark=small, erasers=("negative-prompt",), seeds=1)
    paths = run(plan, tmp_path, bar=fakes.silent)
    base, erased = (json.loads(path.read_text(encoding="utf-8")) for path in paths)
    assert base["figures"]["target"] == {"value": 1.0, "interval": base["figures"]["target"]["interval"], "n": 4}
    assert base["figures"]["ira"]["value"] > 0.9
    assert base["figures"]["ira:other canary"]["value"] == 1
    copies = base["columns"]["picture"]
    assert copies[:4] == [case.targets[0].concept.name] * 4
    assert copies[10:] == [None] * 12  # ordinary pictures of the same object are no copies
    assert erased["figures"]["copy"]["value"] < base["figures"]["copy"]["value"]
    assert "clip_error" not in base["figures"]
