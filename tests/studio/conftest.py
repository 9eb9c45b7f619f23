"""Desks on a model folder with a tiny random denoiser, so that training and drawing take seconds."""

import asyncio

import pytest

from semipermeable.studio.app import create_app
from semipermeable.studio.desk import Desk
from semipermeable.studio.workfolder import WorkFolder

from training_helpers import make_tiny_pipe


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory, _bundled):
    """A diffusers folder that `load_model` reads."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny_pipe(_bundled).save_pretrained(folder)
    return folder


@pytest.fixture
def work(tmp_path):
    return WorkFolder(tmp_path / "work")


@pytest.fixture
def desk(work, tiny_folder):
    """A desk whose chosen model is the tiny one; all its jobs are stopped afterwards."""
    made = Desk(work, [str(tiny_folder)], device="cpu")
    yield made
    made.close()


@pytest.fixture
def finish(desk):
    """Wait for a job, and fail with its message unless it did what it was asked."""

    def wait(job, state="done", seconds=300):
        desk.worker.wait(job, seconds)
        assert job.state == state, job.message
        return job

    return wait


@pytest.fixture
def app(desk):
    """The application of the desk; made inside a running event loop, for outside gradio opens some and leaves them."""

    async def make():
        return create_app(desk)

    try:
        asyncio.get_running_loop()  # Playwright's
    except RuntimeError:
        return asyncio.run(make())
    return create_app(desk)
