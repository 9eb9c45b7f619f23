"""The demo from end to end, with few pictures and few steps: everything is written and everything is measured."""

import json
from contextlib import nullcontext

import pytest
import torch
from PIL import Image

from semipermeable.evaluation.demo import DemoPlan, run_demo
from semipermeable.files import load
from semipermeable.training import TrainConfig


@pytest.mark.slow
def test_demo_end_to_end(tmp_path):
    config = TrainConfig(num_steps=4, num_trajectories=1, sampling_steps=4)
    plan = DemoPlan(per_target=4, both=2, kept=6, steps=4, batch_size=16, config=config)
    titles = []

    def bar(title):
        titles.append(title)
        return nullcontext(lambda _done, _total: None)

    out = tmp_path / "made" / "demo"
    result = run_demo(plan, out, bar=bar, show_training=False)
    assert sorted(path.name for path in out.iterdir()) == [
        "before_after.png",
        "cat.safetensors",
        "neon.safetensors",
        "report.html",
        "result.json",
    ]
    assert len(titles) == 4
    written = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(result.to_json()))
    assert (result.unrelated_rows, result.unrelated_equal) == (6, 6)
    assert written["unrelated_bit_identical"] is True
    for concept in result.concepts:
        assert concept.kept.before == concept.kept.after
        assert concept.target.before.n == 4
        assert concept.neighbours_closed.n > 1000
        assert concept.membrane_bytes == (out / f"{concept.name}.safetensors").stat().st_size
        assert load(out / f"{concept.name}.safetensors").name == concept.name
    assert {"load", "erase cat", "erase neon", "draw and judge", "gate", "total"} == set(written["seconds"])
    assert result.passed == all(verdict.passed for verdict in result.verdicts)
    with Image.open(out / "before_after.png") as sheet:
        assert sheet.width > 600


@pytest.mark.slow
def test_a_failing_demo_leaves_nothing(tmp_path):
    plan = DemoPlan(erased_object="unicycle", config=TrainConfig(num_steps=0, num_trajectories=1, sampling_steps=2))
    with pytest.raises(LookupError, match="unicycle"):
        run_demo(plan, tmp_path / "out", bar=lambda _: nullcontext(lambda *_: None), show_training=False)
    assert not (tmp_path / "out").exists()
    assert torch.is_grad_enabled()
