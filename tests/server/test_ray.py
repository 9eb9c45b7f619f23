"""Replicas under Ray Serve: what the server does when one dies, and a real cluster of two of which one is killed."""

import asyncio
import base64
import hashlib
import importlib.util
import io
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter

import httpx2
import numpy as np
import psutil
import pytest
from PIL import Image
from typer.testing import CliRunner

from semipermeable.cli.app import app
from semipermeable.errors import PolicyError, RefusedError
from semipermeable.server.config import RayTable, load_config
from semipermeable.server.jobs import CallShape
from semipermeable.server.painter import Painter
from semipermeable.server.painting import ReplicaLost
from semipermeable.server.replica import ActingOrder, Order, Refusal, Replica, RowOrder
from semipermeable.server.schemas import ImageRequest
from semipermeable.server.service import Service

SHAPE = CallShape(1, 4.0, 64, 64)
needs_serve = pytest.mark.skipif(importlib.util.find_spec("grpc_reflection") is None, reason="ray[serve] is missing")


class Mortal(Painter):
    """A painter that is lost with its first calls, and may be called by several threads."""

    def __init__(self, pipe, deaths, at_once=1):
        super().__init__(pipe)
        self.deaths, self.at_once = deaths, at_once
        self.before_death = lambda: None
        self.side_by_side, self.most_seen = 0, 0
        self.one = threading.Lock()

    @property
    def most_calls(self):
        return 3

    def calls(self, waiting):
        return self.at_once

    def draw(self, shelf, rows, shape, unwanted):
        self.side_by_side += 1
        self.most_seen = max(self.most_seen, self.side_by_side)
        try:
            time.sleep(0.05)
            with self.one:
                if self.deaths:
                    self.deaths -= 1
                    self.before_death()
                    raise ReplicaLost("killed")
                return super().draw(shelf, rows, shape, unwanted)
        finally:
            self.side_by_side -= 1


def rows_of(service, tenant="acme", **fields):
    return service.jobs_for(ImageRequest(prompt="an icon of a cat", seed=1, steps=1, **fields), tenant)


def drawn(service, jobs):
    service.queue.put(jobs)
    return [job.future.result(60) for job in jobs]


def test_rows_of_a_lost_replica_are_drawn_again_as_the_same_picture(config, pipe):
    service = Service(config, Mortal(pipe, deaths=2))
    service.worker.start()
    try:
        lost = drawn(service, rows_of(service, n=2))
        whole = drawn(service, rows_of(service, n=2))
    finally:
        service.close()
    assert [np.array_equal(a.image, b.image) for a, b in zip(lost, whole, strict=True)] == [True, True]
    assert "spm_replicas_lost_total 2.0" in service.figures.text().decode()


def test_rows_drawn_again_are_planned_again_so_that_a_stricter_policy_counts(config, pipe, policies):
    painter = Mortal(pipe, deaths=1)
    service = Service(config, painter)
    painter.before_death = lambda: policies(cats=("cat", "dog")) and service.keeper.refresh()
    service.worker.start()
    try:
        (one,) = drawn(service, rows_of(service))
    finally:
        service.close()
    assert [acting.shelved.concept for acting in one.plan.acting] == ["cat", "dog"]


def test_rows_that_kill_three_replicas_are_refused_and_the_client_may_try_again(config, pipe):
    service = Service(config, Mortal(pipe, deaths=3))
    service.worker.start()
    try:
        with pytest.raises(RefusedError, match="3 replicas died") as caught:
            drawn(service, rows_of(service))
        assert (caught.value.status, caught.value.code, caught.value.retry_after) == (503, "replica_lost", 5)
        assert drawn(service, rows_of(service))
    finally:
        service.close()


@pytest.mark.parametrize("at_once", [1, 2])
def test_no_more_calls_side_by_side_than_replicas_run(config, pipe, at_once):
    painter = Mortal(pipe, deaths=0, at_once=at_once)
    painter.batch_rows = 1
    service = Service(config, painter)
    service.worker.start()
    try:
        drawn(service, rows_of(service, n=4))
    finally:
        service.close()
    assert painter.most_seen == at_once


def test_without_a_replica_rows_wait_and_the_server_is_not_ready(config, pipe):
    painter = Mortal(pipe, deaths=0, at_once=0)
    service = Service(config, painter)
    service.worker.start()
    try:
        jobs = rows_of(service)
        service.queue.put(jobs)
        time.sleep(0.5)
        assert not jobs[0].future.done()
        painter.at_once = 1
        assert jobs[0].future.result(60)
    finally:
        service.close()


def test_a_replica_draws_nothing_with_another_model_or_without_a_membrane():
    replica = Replica("emoji", "cpu", None, None)
    _, facts = asyncio.run(replica.facts())
    bare = RowOrder("an icon of a cat", "", 1, ())
    erased = RowOrder("an icon of a cat", "", 1, (ActingOrder("a" * 64, "transport", 1.0, "policy"),))
    other = asyncio.run(replica.draw(Order("0" * 64, SHAPE, (bare,), "", None)))
    assert isinstance(other, Refusal)
    assert other.kind == "apply"
    assert "ordered is 000" in other.message
    without = asyncio.run(replica.draw(Order(facts.model_hash, SHAPE, (bare, erased), "", None)))
    assert isinstance(without, Refusal)
    assert without.kind == "apply"
    assert "not among those in force" in without.message


def test_settings(tmp_path):
    file = tmp_path / "server.toml"
    file.write_text('[ray]\nreplicas = 2\nmax_replicas = 8\ngpus = 0.5\naddress = "10.0.0.1:6379"\n')
    assert load_config(file).ray == RayTable(replicas=2, max_replicas=8, gpus=0.5, address="10.0.0.1:6379")
    for text, message in (
        ("replicas = 3\nmax_replicas = 2", "max_replicas = 2 is less than replicas = 3"),
        ('address = "ray://10.0.0.1:10001"', "run the server on a machine of the cluster"),
        ("replica = 3", "did you mean"),
    ):
        file.write_text(f"[ray]\n{text}\n")
        with pytest.raises(PolicyError, match=re.escape(message)):
            load_config(file)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--replicas", "two"], "write e.g. 2, or 1:8"),
        (["--replicas", "3:2"], "max_replicas = 2 is less than replicas = 3"),
        (["--ray-address", "ray://10.0.0.1:10001"], "run the server on a machine of the cluster"),
    ],
)
def test_the_command_line_refuses_what_cannot_be(folder, options, message):
    answer = CliRunner().invoke(app, ["serve", "--membranes", str(folder), *options], env={"COLUMNS": "400"})
    assert answer.exit_code == 2
    assert message in answer.output


def test_without_ray_the_extra_is_named(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    answer = CliRunner().invoke(app, ["serve", "--membranes", str(folder), "--ray"])
    assert answer.exit_code == 2
    assert "pip install 'semipermeable[serve,cluster]'" in answer.output


STRANGER = """
import os, sys
os.environ["RAY_AUTH_MODE"] = sys.argv[2]
os.environ["RAY_AUTH_TOKEN"] = "00" * 32
from ray._raylet import GcsClient
GcsClient(address=sys.argv[1]).internal_kv_keys(b"", None, 5)
print("in")
"""


@needs_serve
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_replicas_of_which_one_is_killed_lose_nothing_and_mix_nothing_up(
    tmp_path, files, keys, policies, spm_serve, monkeypatch
):
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else replicas starve beside other work of the machine
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    config = files(ray={"replicas": 2}, drawing={"steps": 2, "max_steps": 999, "batch_rows": 2}, open_metrics=True)
    process = spm_serve("--config", config, cwd=tmp_path)
    family = psutil.Process(process.popen.pid).children(recursive=True)
    try:
        both_run(process)
        family = psutil.Process(process.popen.pid).children(recursive=True)
        strangers_stay_outside(family)
        delivered = load_while_one_is_killed(process, family, keys)
        both_run(process)
        family += psutil.Process(process.popen.pid).children(recursive=True)
        check_pictures(delivered)
        check_records(tmp_path / "audit.sqlite3", delivered)
        assert float(figure(process, "spm_replicas_lost_total")) >= 1
        assert {figure(process, f'spm_calls_total{{replica="{rank}"}}') > 0 for rank in (0, 1)} == {True}
        before = process.post(keys.acme.key).json()["policy"]
        policies(cats=("cat", "dog"))
        wait_until(lambda: process.post(keys.acme.key).json()["policy"] != before, 20)
        after = [process.post(keys.acme.key).json() for _ in range(4)]
        assert {tuple(m["concept"] for m in one["data"][0]["membranes"]) for one in after} == {("cat", "dog")}
        clients_that_leave_free_the_replicas(process, keys)
        with sqlite3.connect(tmp_path / "audit.sqlite3") as records:
            assert records.execute("SELECT count(*) FROM audit WHERE steps = 999").fetchone() == (0,)
        records.close()
        assert process.end() in (0, -signal.SIGTERM, 143)
        assert not psutil.wait_procs(family, timeout=30)[1]
    finally:
        if process.popen.poll() is None:
            process.end(signal.SIGKILL)
        for one in family:
            if one.is_running():
                one.kill()


@needs_serve
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_replicas_come_as_pictures_wait_and_go_when_none_do(tmp_path, files, keys, spm_serve, monkeypatch):
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    table = {"replicas": 1, "max_replicas": 2, "idle_seconds": 5.0}
    config = files(ray=table, drawing={"steps": 4, "max_steps": 8, "batch_rows": 2}, open_metrics=True)
    process = spm_serve("--config", config, cwd=tmp_path)
    answers, stop = [], threading.Event()

    def client(number):
        while not stop.is_set():
            answers.append(process.post(keys.acme.key, seed=number, n=2).status_code)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    try:
        assert figure(process, "spm_replicas") == 1.0
        for thread in threads:
            thread.start()
        wait_until(lambda: figure(process, "spm_replicas") == 2.0, 180)
        wait_until(lambda: figure(process, 'spm_calls_total{replica="1"}') > 0, 60)
        stop.set()
        for thread in threads:
            thread.join(120)
        wait_until(lambda: figure(process, "spm_replicas") == 1.0, 180)
        assert set(answers) == {200}
        assert process.post(keys.acme.key).status_code == 200
    finally:
        stop.set()
        process.end()


def load_while_one_is_killed(process, family, keys):
    """Eight clients with seeds of their own; a replica is stopped in mid-call, then killed. Return what came back."""
    delivered, failed, stop = [], [], threading.Event()

    def client(number):
        name = ("acme", "zoo")[number % 2]
        while not stop.is_set():
            answer = process.post(getattr(keys, name).key, seed=number, n=2)
            if answer.status_code == 200:
                delivered.append((name, answer.json()))
            else:
                failed.append((answer.status_code, answer.text))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(delivered) >= 8, 60)
    victim = next(one for one in family if one.name().startswith("ray::ServeRepli"))
    victim.suspend()
    time.sleep(1)  # long enough for it to be in the middle of a call: the clients never stop asking
    victim.kill()
    at_death = len(delivered)
    wait_until(lambda: len(delivered) >= at_death + 16, 60)
    stop.set()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    assert not failed
    return delivered


def clients_that_leave_free_the_replicas(process, keys):
    """Two calls of minutes, one on each replica, whose clients leave: the next picture does not wait for them."""
    headers = {"authorization": f"Bearer {keys.acme.key}"}

    def leave(seed):
        body = {"prompt": "an icon of a cat", "seed": seed, "n": 2, "steps": 999}
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(f"{process.address}/v1/images/generations", headers=headers, json=body, timeout=3)

    threads = [threading.Thread(target=leave, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    started = time.monotonic()
    assert process.post(keys.acme.key, steps=1).status_code == 200
    assert time.monotonic() - started < 20


def check_pictures(delivered):
    """Each answer under its tenant's policy; the same request is the same picture whichever replica drew it."""
    seen = {}
    for name, answer in delivered:
        wanted = {"acme": [("cat", 1.0)], "zoo": []}[name]
        for one in answer["data"]:
            assert [(m["concept"], m["gamma"]) for m in one["membranes"]] == wanted
            pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(one["b64_json"]))), np.int16)
            first = seen.setdefault((name, one["seed"]), pixels)
            assert np.abs(first - pixels).max() <= 2
    # Neighbouring clients share a seed, under different policies.
    shared = [seed for name, seed in seen if name == "acme" and ("zoo", seed) in seen]
    assert shared
    assert all(np.abs(seen["acme", seed] - seen["zoo", seed]).max() > 20 for seed in shared)


def check_records(database, delivered):
    """One record per picture handed out, and none of a call that died."""
    with sqlite3.connect(database) as records:
        assert records.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        found = {row[0]: row[1:] for row in records.execute("SELECT image, tenant, seed, picture_hash FROM audit")}
        requests = Counter(row[0] for row in records.execute("SELECT request FROM audit"))
    records.close()
    wanted = {
        one["id"]: (name, one["seed"], hashlib.sha256(base64.b64decode(one["b64_json"])).hexdigest())
        for name, answer in delivered
        for one in answer["data"]
    }
    assert found == wanted
    assert set(requests.values()) == {2}


def strangers_stay_outside(family):
    """Ray's ports are open on every address of the machine; nobody without this run's token gets an answer."""
    gcs = next(one for one in family if one.name() == "gcs_server")
    port = next(one.laddr.port for one in gcs.net_connections("tcp") if one.status == psutil.CONN_LISTEN)
    for mode in ("token", "disabled"):
        command = [sys.executable, "-c", STRANGER, f"127.0.0.1:{port}", mode]
        found = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert found.returncode != 0, found.stdout
        assert "uthenticat" in found.stderr


def both_run(process):
    wait_until(lambda: figure(process, "spm_replicas") == 2.0, 120)


def figure(process, name):
    text = httpx2.get(f"{process.address}/metrics", timeout=30).text
    found = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(found[0]) if found else 0.0


def wait_until(true, seconds):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)
