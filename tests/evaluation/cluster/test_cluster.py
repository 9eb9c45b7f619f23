"""Drawing on a real Ray cluster of two workers on this machine, one of which is killed while it works."""

import json
import os
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

from evaluation.runner import fakes
from semipermeable.errors import ConfigError
from semipermeable.evaluation.cluster import draw_on_cluster
from semipermeable.evaluation.runner import RunPlan, Tools, run

TESTS = Path(__file__).parents[2]


HELD = "held"  # a file beside the log: a task hangs in its fourth picture on the worker about to die
DOOMED = "doomed"  # a file beside the log: which node that is


def slow_load(model, device, dtype):
    """A model that notes on which node it works, and never returns from its fourth picture on the doomed one."""
    import ray

    log = Path(os.environ["SPM_TEST_LOG"])
    node = ray.get_runtime_context().get_node_id()
    (log / f"{node}-{time.time_ns()}").touch()
    doomed = (log.parent / DOOMED).read_text(encoding="utf-8") == node
    if not doomed and len(list(log.glob(f"{node}-*"))) > 2:
        wait_for(lambda: (log.parent / HELD).exists())  # leave the other worker something to die over
    pipe = fakes.FakePipe()
    quick, drawn = pipe.one, []

    def one(prompt, generator):
        drawn.append(prompt)
        if doomed and len(drawn) == 4:
            (log.parent / HELD).touch()
            time.sleep(600)
        return quick(prompt, generator)

    pipe.one = one
    return pipe


def wait_for(true, seconds=120):
    """Wait until it is true, and say so when it never comes."""
    until = time.monotonic() + seconds
    while not true():
        if time.monotonic() > until:
            raise TimeoutError("what the test waits for did not happen")
        time.sleep(0.05)


TOOLS = Tools(load=slow_load, eraser=fakes.eraser, panel=fakes.panel)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    log = tmp_path / "log"
    log.mkdir()
    monkeypatch.setenv("SPM_TEST_LOG", str(log))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), *filter(None, sys.path)]))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else workers starve beside other work of the machine
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = {"object_store_memory": 100 * 2**20, "include_dashboard": False}
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
        made.workers = [made.add_node(num_cpus=1, object_store_memory=100 * 2**20) for _ in range(2)]
        made.log = log
        made.wait_for_nodes()
        yield made
        made.shutdown()


def content_of(path):
    whole = json.loads(path.read_text(encoding="utf-8"))
    return {key: part for key, part in whole.items() if key in ("columns", "shards", "sets", "configuration")}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own, of which some come when the collector runs
def test_a_killed_worker_loses_nothing_and_counts_nothing_twice(cluster, tmp_path):
    benchmark = fakes.small_benchmark(("horse", "rose", "apple", "car"), per_role=20)
    plan = RunPlan(benchmark=benchmark, erasers=("blunt",), seeds=2, cluster=cluster.address)
    arrived, killed = [], []
    doomed = cluster.workers[0]
    (cluster.log.parent / DOOMED).write_text(doomed.node_id, encoding="utf-8")

    def kill_one():
        wait_for((cluster.log.parent / HELD).exists)
        cluster.remove_node(doomed, allow_graceful=False)
        killed.append(len(arrived))

    def bar(_title):
        from contextlib import nullcontext

        return nullcontext(lambda done, total: arrived.append((done, total)))

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
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
