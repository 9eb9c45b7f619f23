"""A Ray cluster of two workers on this machine, of which one hangs in the middle of a task until it is killed.

Nothing here depends on how fast a worker is: who is killed is known before, it is killed once it hangs, and the other
waits for that where a test says so. Workers import this module, too.
"""

import contextlib
import os
import sys
import threading
import time
import warnings
from pathlib import Path

TESTS = Path(__file__).parent
_FOLDER = "SPM_TEST_FOLDER"
_HELD = "held"  # a file of that folder: the doomed worker hangs
_DOOMED = "doomed"  # a file of that folder: the node that will be killed


def wait_for(true, seconds=300):
    """Wait until it is true, and say so when it never comes."""
    until = time.monotonic() + seconds
    while not true():
        if time.monotonic() > until:
            raise TimeoutError("what the test waits for did not happen")
        time.sleep(0.05)


def node():
    """The node that a task runs on."""
    import ray

    return ray.get_runtime_context().get_node_id()


def is_doomed():
    """Whether this task runs on the node that will be killed."""
    return (Path(os.environ[_FOLDER]) / _DOOMED).read_text(encoding="utf-8") == node()


def hang():
    """Never return, on the doomed node."""
    (Path(os.environ[_FOLDER]) / _HELD).touch()
    time.sleep(900)


def wait_until_it_hangs():
    """Leave the doomed worker something to die over."""
    wait_for((Path(os.environ[_FOLDER]) / _HELD).exists)


@contextlib.contextmanager
def two_workers(folder, monkeypatch):
    """Start the cluster, give it, and stop it."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv(_FOLDER, str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), *filter(None, sys.path)]))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else workers starve beside other work of the machine
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        small = {"object_store_memory": 100 * 2**20, "include_dashboard": False}
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
        try:
            made.workers = [made.add_node(num_cpus=1, object_store_memory=100 * 2**20) for _ in range(2)]
            made.wait_for_nodes()
            (folder / _DOOMED).write_text(made.workers[0].node_id, encoding="utf-8")
            yield made
        finally:
            made.shutdown()


def kill_once_it_hangs(cluster, before=lambda: None):
    """Kill the doomed worker as soon as it hangs, after calling `before`; return the thread that does."""

    def kill():
        wait_until_it_hangs()
        before()
        cluster.remove_node(cluster.workers[0], allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    return killer
