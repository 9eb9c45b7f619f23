"""Drawing on a real Ray cluster of two workers on this machine, one of which is killed while it works."""

import contextlib
import dataclasses
import json
import os
import sys
import time
from pathlib import Path

import pytest

from evaluation.runner import fakes
from ray_helpers import hang, is_doomed, kill_once_it_hangs, node, two_workers, wait_until_it_hangs
from semipermeable.errors import ConfigError
from semipermeable.evaluation.cluster import draw_on_cluster
from semipermeable.evaluation.runner import RunPlan, Tools, run


def slow_load(model, device, dtype):
    """A model that notes on which node it works, and never returns from its fourth picture on the doomed one."""
    log = Path(os.environ["SPM_TEST_LOG"])
    (log / f"{node()}-{time.time_ns()}").touch()
    doomed = is_doomed()
    if not doomed and len(list(log.glob(f"{node()}-*"))) > 2:
        wait_until_it_hangs()
    pipe = fakes.FakePipe()
    quick, drawn = pipe.one, []

    def one(prompt, generator):
        drawn.append(prompt)
        if doomed and len(drawn) == 4:
            hang()
        return quick(prompt, generator)

    pipe.one = one
    return pipe


TOOLS = Tools(load=slow_load, eraser=fakes.eraser, panel=fakes.panel)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    log = tmp_path / "log"
    log.mkdir()
    monkeypatch.setenv("SPM_TEST_LOG", str(log))
    with two_workers(tmp_path, monkeypatch) as made:
        made.log = log
        yield made


def content_of(path):
    whole = json.loads(path.read_text(encoding="utf-8"))
    return {key: part for key, part in whole.items() if key in ("columns", "shards", "sets", "configuration")}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own, of which some come when the collector runs
def test_a_killed_worker_loses_nothing_and_counts_nothing_twice(cluster, tmp_path):
    benchmark = fakes.small_benchmark(("horse", "rose", "apple", "car"), per_role=20)
    plan = RunPlan(benchmark=benchmark, erasers=("blunt",), seeds=2, cluster=cluster.address)
    arrived, killed = [], []

    def bar(_title):
        from contextlib import nullcontext

        return nullcontext(lambda done, total: arrived.append((done, total)))

    killer = kill_once_it_hangs(cluster, lambda: killed.append(len(arrived)))
    paths = run(plan, tmp_path / "cluster", bar=bar, tools=TOOLS)
    killer.join()
    assert killed
    assert killed[0] < 8  # it died while there was work left
    assert len(list(cluster.log.iterdir())) == 9  # the task that died with it was started again
    assert arrived[-1] == (8 * 80, 8 * 80)
    assert len(arrived) == 8
    alone = RunPlan(benchmark=benchmark, erasers=("blunt",), seeds=2)
    wanted = run(
        alone,
        tmp_path / "alone",
        bar=fakes.silent,
        tools=Tools(load=fakes.load, eraser=fakes.eraser, panel=fakes.panel),
    )
    for path, other in zip(paths, wanted, strict=True):
        found = content_of(path)
        assert found == content_of(other)
        assert len(found["columns"]["object"]) == 4 * 40 * 2
        assert len(set(map(tuple, found["shards"]))) == len(found["shards"]) == 8
    again = run(plan, tmp_path / "cluster", bar=bar, tools=TOOLS)
    assert again == paths
    assert len(arrived) == 8  # nothing was left to draw


def test_without_ray_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'semipermeable\[cluster\]'"):
        draw_on_cluster("auto", [], "emoji", tmp_path, TOOLS, lambda _done: None)


def test_membrane_files_travel_with_the_task(tmp_path):
    from semipermeable.evaluation import cluster as module

    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    first.write_bytes(b"one")
    second.write_bytes(b"two")
    files = module._files(f"spm:{first}, {second}")
    assert sorted(files.values()) == [b"one", b"two"]
    there = tmp_path / "there"
    there.mkdir()
    first.unlink()
    name, _, parts = module._localised(f"spm:{first}, {second}", files, there).partition(":")
    assert name == "spm"
    assert [Path(part).read_bytes() for part in parts.split(",")] == [b"one", b"two"]
    assert module._files("sld:max") == {}
    assert module._localised("sld:max", {}, there) == "sld:max"


@dataclasses.dataclass
class Named(fakes.FakeEraser):
    """Says in its settings what it was called, as real erasers do."""

    def prepare(self, pipe, concepts, *, seed, progress=False):
        spec, self.name = self.name, "noop" if self.name == "noop" else "blunt"
        made = super().prepare(pipe, concepts, seed=seed)
        return dataclasses.replace(made, config={"eraser": spec, "seed": seed})


def test_tasks_of_one_case_agree_on_settings_wherever_its_files_lie(tmp_path, monkeypatch):
    from semipermeable.evaluation import cluster as module

    @contextlib.contextmanager
    def connected(_address):
        yield None

    def one_by_one(_ray, work, jobs, arguments, _told, *, num_gpus):
        assert num_gpus == 0
        for job in jobs:
            yield job, work(*arguments(job))

    monkeypatch.setattr(module, "connected", connected)
    monkeypatch.setattr(module, "gather", one_by_one)
    file = tmp_path / "cat.safetensors"
    file.write_bytes(b"a membrane")
    spec = f"spm:{file},zoo:horse"
    tools = Tools(load=fakes.load, eraser=Named, panel=fakes.panel)
    plan = RunPlan(benchmark=fakes.small_benchmark(), erasers=(spec,), seeds=2, cluster="auto", workers=8)
    _, path = run(plan, tmp_path / "out", bar=fakes.silent, tools=tools)
    assert {one["eraser"] for one in json.loads(path.read_text(encoding="utf-8"))["erasures"].values()} == {spec}
