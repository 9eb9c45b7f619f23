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


@pytest.fixture
def gateless(monkeypatch):
    """Membranes without a gate, whose fit takes longer than all else that a test of making many needs."""
    monkeypatch.setattr("semipermeable.training.api.fit_gate", lambda *_arguments, **_options: None)
