"""Fixtures for all tests: small random networks for the mechanics, the bundled model for the laws."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")

import pytest
import torch

from semipermeable import zoo

from helpers import make_tiny_unet

# Side by side, each process takes its share of the processors, and so do those that it starts.
if (_processes := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))) > 1:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // _processes))
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))


@pytest.fixture(autouse=True)
def _environment_stays():
    """What a test leaves in the environment would change what later tests start: Ray reads there who is let in."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture
def generator():
    """A seeded generator."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def tiny_unet():
    """See `make_tiny_unet`."""
    return make_tiny_unet()


@pytest.fixture(scope="session")
def _bundled():
    return zoo.load("emoji")


@pytest.fixture
def pipe(_bundled):
    """The bundled pipeline, sharing weights over the session but a fresh object: nothing of a test stays in it."""
    fresh = type(_bundled)(
        **_bundled.components | {"scheduler": type(_bundled.scheduler).from_config(_bundled.scheduler.config)},
        requires_safety_checker=False,
    )
    fresh.register_to_config(_name_or_path=_bundled.config.get("_name_or_path"))
    fresh.set_progress_bar_config(disable=True)
    return fresh


@pytest.fixture(scope="session")
def judge():
    """The bundled judge of objects and styles."""
    return zoo.judge("emoji")
