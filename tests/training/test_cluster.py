"""Training on a cluster: laws with tasks done here, then a real cluster of two workers of which one is killed."""

import contextlib
import logging
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from ray_helpers import hang, is_doomed, kill_once_it_hangs, two_workers, wait_for, wait_until_it_hangs
from semipermeable import zoo
from semipermeable.cli import app
from semipermeable.concept import Concept
from semipermeable.errors import ConfigError, OutputError
from semipermeable.files import load_concepts, save_concepts
from semipermeable.files.native import to_bytes
from semipermeable.training import cluster as module
from semipermeable.training import erase_each, erase_many, erase_on_cluster

from helpers import random_membrane
from training_helpers import make_tiny_pipe, quick

NAMES = ["cat", "dog", "rose", "wolf"]
OPTIONS = {"config": quick(num_steps=2), "at_once": 2, "progress": False}


@pytest.fixture(autouse=True)
def _one_thread():
    """Tasks compute with one thread, and bits depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    module._workshop.cache_clear()


@pytest.fixture
def here(monkeypatch):
    """Tasks are done in this process, the last one first."""

    def gather(ray, work, jobs, arguments, told, *, num_gpus):
        for job in reversed(list(jobs)):
            yield job, work(*arguments(job))

    @contextlib.contextmanager
    def connected(address):
        yield SimpleNamespace(cluster_resources=dict)

    monkeypatch.setattr(module, "gather", gather)
    monkeypatch.setattr(module, "connected", connected)
    monkeypatch.setattr(module, "ray_module", lambda: None)


@pytest.fixture
def nowhere(monkeypatch):
    """Connecting is a mistake."""

    def connected(address):
        raise AssertionError("connected")

    monkeypatch.setattr(module, "connected", connected)
    monkeypatch.setattr(module, "ray_module", lambda: None)


def test_the_same_bytes_as_here_in_whatever_order_they_arrive(here, tiny_pipe, tmp_path):
    options = {**OPTIONS, "orthogonal_to": [random_membrane(tiny_pipe.unet, "lion")]}
    wanted = list(erase_each(tiny_pipe, NAMES[:3], out_dir=tmp_path / "here", **options))
    steps = erase_on_cluster(
        "auto", "tiny", NAMES[:3], load=lambda source, device: tiny_pipe, out_dir=tmp_path / "there", **options
    )
    made = list(steps)
    assert [(one.membrane.name, one.found) for one in made] == [("rose", False), ("cat", False), ("dog", False)]
    for one in wanted:
        assert (tmp_path / "there" / one.path.name).read_bytes() == one.path.read_bytes()


def test_the_closed_form_is_made_in_groups_too_and_the_bar_counts_membranes(here, gateless, tiny_pipe, capsys):
    options = {"config": quick("instant", num_steps=0)}
    wanted = erase_many(tiny_pipe, NAMES, progress=False, **options)
    made = list(erase_on_cluster("auto", "tiny", NAMES, load=lambda source, device: tiny_pipe, **options))
    assert [to_bytes(one.membrane) for one in made] == [to_bytes(one) for one in wanted]
    assert "4/4" in capsys.readouterr().err


def test_what_is_there_is_not_made_and_needs_no_cluster(nowhere, gateless, tiny_pipe, tmp_path):
    erase_many(tiny_pipe, NAMES[:2], out_dir=tmp_path, **OPTIONS)
    load = {"load": lambda source, device: tiny_pipe, "out_dir": tmp_path}
    made = list(erase_on_cluster("auto", "tiny", NAMES[:2], **load, **OPTIONS))
    assert [(one.membrane.name, one.found) for one in made] == [("cat", True), ("dog", True)]
    with pytest.raises(OutputError, match=r"cat\.safetensors holds another membrane \(seed differ\)"):
        list(erase_on_cluster("auto", "tiny", ["rose", "cat"], seed=1, **load, **OPTIONS))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cat.safetensors", "dog.safetensors"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"config": quick(checkpoint="x.safetensors")}, "checkpoint follows one training on this machine"),
        ({"config": quick(tensorboard="logs")}, "tensorboard follows one training on this machine"),
        ({"config": quick("instant", num_steps=0), "joint": True}, "joint needs training steps"),
        ({"config": quick(num_anchors=0), "joint": True}, "joint training needs anchors"),
        ({"at_once": 0}, "at_once must be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused_before_connecting(nowhere, tiny_pipe, changed, message):
    with pytest.raises(ConfigError, match=message):
        list(erase_on_cluster("auto", "tiny", NAMES, load=lambda source, device: tiny_pipe, **{**OPTIONS, **changed}))


def test_a_membrane_of_another_model_is_not_kept(here, gateless, tiny_pipe, pipe, tmp_path):
    other = make_tiny_pipe(pipe)
    with torch.no_grad():
        other.unet.conv_in.weight.add_(1)
    steps = erase_on_cluster(
        "auto",
        "tiny",
        NAMES[:1],
        load=lambda source, device: tiny_pipe if device == "cpu" else other,
        out_dir=tmp_path / "made",
        **OPTIONS,
    )
    with pytest.raises(ConfigError, match=r"another membrane of 'cat' .*\(base model differ\); 'tiny' and the package"):
        list(steps)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("device", "gpus", "found"),
    [
        (None, 0, (None, 0)),
        (None, 2, ("cuda", 1)),
        ("cuda:1", 2, ("cuda", 1)),  # a task sees its own GPU alone, as the first
        ("cpu", 2, ("cpu", 0)),
    ],
)
def test_a_task_has_a_gpu_of_its_own_where_there_are_any(device, gpus, found):
    assert module._placement(SimpleNamespace(cluster_resources=lambda: {"GPU": float(gpus)}), device) == found


def test_a_cluster_without_gpus_is_told_from_one_with():
    with pytest.raises(ConfigError, match="the cluster has no GPU; use --device cpu"):
        module._placement(SimpleNamespace(cluster_resources=dict), "cuda")


def fatal_load(source, device):
    """A tiny model; on the doomed node it hangs in its first training step, and the other node waits for that."""
    made = make_tiny_pipe(zoo.load("emoji"))
    if device == "cpu":  # the driver, for the hashes
        return made

    def stop(_module, _arguments):
        if torch.is_grad_enabled():
            hang()

    if is_doomed():
        made.unet.register_forward_pre_hook(stop)
    else:
        wait_until_it_hangs()
    return made


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own, of which some come when the collector runs
def test_a_killed_worker_loses_nothing_and_nothing_is_made_twice(tmp_path, monkeypatch, tiny_pipe, caplog):
    pytest.importorskip("ray")
    there = tmp_path / "there"
    with two_workers(tmp_path, monkeypatch) as cluster, caplog.at_level(logging.WARNING, "semipermeable.cluster"):
        killer = kill_once_it_hangs(cluster)
        made = list(erase_on_cluster(cluster.address, "tiny", NAMES, load=fatal_load, out_dir=there, **OPTIONS))
        killer.join()
    assert sorted(one.membrane.name for one in made) == sorted(NAMES)
    assert not any(one.found for one in made)
    said = [record.getMessage() for record in caplog.records if record.name == "semipermeable.cluster"]
    assert len(said) == 1  # one task was started again, the other was not
    assert "was lost with its worker" in said[0]
    for one in erase_each(tiny_pipe, NAMES, out_dir=tmp_path / "here", **OPTIONS):
        assert (there / one.path.name).read_bytes() == one.path.read_bytes()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_killed_driver_goes_on_with_the_same_command(tmp_path, monkeypatch, pipe):
    pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    save_concepts([Concept(name) for name in NAMES[:3]], "c.toml")
    folder = tmp_path / "made"
    with two_workers(tmp_path, monkeypatch) as cluster:
        arguments = ["erase", "--concepts", "c.toml", "--out-dir", "made", "--preset", "instant", "--at-once", "1"]
        arguments += ["--cluster", cluster.address]
        command = [sys.executable, "-m", "semipermeable", *arguments]
        driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: driver.poll() is not None or list(folder.glob("*.safetensors")))
        driver.kill()
        assert driver.wait() == -signal.SIGKILL
        before = {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
        result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert result.output.count("is there already") == len(before) >= 1
    assert {path: path.stat().st_mtime_ns for path in before} == before
    wanted = erase_many(pipe, load_concepts("c.toml"), preset="instant", at_once=1, progress=False)
    assert [(folder / f"{one.name}.safetensors").read_bytes() for one in wanted] == [to_bytes(one) for one in wanted]
