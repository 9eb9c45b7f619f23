"""Fixtures of the tests of training."""

import pytest

from semipermeable.hosts import host_for

from training_helpers import make_tiny_pipe


@pytest.fixture
def tiny_pipe(pipe):
    """See `make_tiny_pipe`."""
    return make_tiny_pipe(pipe)


@pytest.fixture
def host(tiny_pipe):
    """Host of the tiny pipeline."""
    return host_for(tiny_pipe)
