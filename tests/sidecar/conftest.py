"""Fixtures that tests of the cache and of the loader share."""

import pytest

from tests.gguf_weights import random_tensors, write_gguf


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path):
    return write_gguf(tmp_path / "model.gguf", random_tensors(), "Q8_0")
