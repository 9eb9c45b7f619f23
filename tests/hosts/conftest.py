"""Fixtures of the tests of families."""

import pytest


@pytest.fixture(scope="session")
def tokenizer(_bundled):
    """The bundled model's CLIP tokenizer."""
    return _bundled.tokenizer
