"""Gathering results from a stand-in for Ray: what is started again, what is not, and what is cancelled."""

import logging
import socket
import sys
from types import SimpleNamespace

import pytest

from semipermeable.cluster import RETRIES, connected, gather
from semipermeable.errors import ConfigError

exceptions = pytest.importorskip("ray.exceptions")


class Ray:
    """Does a task when its result is asked for; `deaths` workers die first."""

    def __init__(self, deaths=0, empty=False):
        self.deaths, self.empty = deaths, empty
        self.started, self.cancelled, self.options = [], [], {}

    def remote(self, **options):
        self.options = options
        return lambda work: SimpleNamespace(remote=lambda *arguments: self.start(work, arguments))

    def start(self, work, arguments):
        self.started.append(arguments)
        return (len(self.started), work, arguments)

    def wait(self, references, num_returns, timeout=None):
        return ([], references) if self.empty and timeout is not None else (references[:1], references[1:])

    def get(self, reference):
        _, work, arguments = reference
        if self.deaths:
            self.deaths -= 1
            raise exceptions.WorkerCrashedError
        try:
            return work(*arguments)
        except ValueError as error:
            raise exceptions.RayTaskError("work", f"Traceback\nValueError: {error}", error) from error

    def cancel(self, reference, force):
        self.cancelled.append(reference[0])

    def cluster_resources(self):
        return {"CPU": 0.0}


def half(number):
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number // 2


def halves(ray, jobs, num_gpus=0):
    return gather(ray, half, jobs, lambda job: (job,), lambda job: f"halving {job}", num_gpus=num_gpus)


def test_every_result_comes_once_although_workers_die_and_it_is_said(caplog):
    ray = Ray(deaths=2)
    with caplog.at_level(logging.WARNING):
        assert sorted(halves(ray, [2, 4, 6], num_gpus=1)) == [(2, 1), (4, 2), (6, 3)]
    assert ray.started == [(2,), (4,), (6,), (2,), (4,)]
    assert ray.options == {"num_cpus": 1, "num_gpus": 1, "max_retries": 0}
    said = [record.getMessage() for record in caplog.records]
    assert ["halving 2 was lost with its worker" in said[0], "it starts again, 1 of 5" in said[0]] == [True, True]
    assert len(said) == 2


def test_a_task_over_which_every_worker_dies_ends_the_run():
    ray = Ray(deaths=100)
    with pytest.raises(ConfigError, match=r"halving 2 failed on the cluster \(6 workers died"):
        list(halves(ray, [2]))
    assert len(ray.started) == RETRIES + 1


def test_what_the_work_itself_raises_is_not_tried_again_and_the_rest_is_cancelled():
    ray = Ray()
    with pytest.raises(ConfigError, match=r"halving 3 failed on the cluster \(ValueError: 3 is odd\).*kept"):
        list(halves(ray, [2, 3, 4]))
    assert ray.started == [(2,), (3,), (4,)]
    assert ray.cancelled == [3]


def test_who_stops_listening_cancels_what_is_left():
    ray = Ray()
    steps = halves(ray, [2, 4, 6])
    assert next(steps) == (2, 1)
    steps.close()
    assert ray.cancelled == [2, 3]


def test_a_cluster_that_can_hold_no_task_is_waited_for_aloud(caplog):
    assert list(halves(Ray(empty=True), [2])) == [(2, 1)]
    assert "no worker that can hold a task (it has {'CPU': 0.0}); waiting" in caplog.text


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'semipermeable\[cluster\]'"), connected("auto"):
        pass


def test_an_address_where_nobody_answers(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    said = rf"at '{address}' \(.*refused\); start one with `ray start --head`"
    for prefix in ("", "ray://"):
        with pytest.raises(ConfigError, match=said.replace("'127", f"'{prefix}127")), connected(prefix + address):
            pass

    def init(**options):
        raise ConnectionError(f"nobody at {options['address']}\nat all")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init))
    with pytest.raises(ConfigError, match=r"at 'auto' \(nobody at auto\); start one"), connected("auto"):
        pass
