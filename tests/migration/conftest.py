"""Two small models in a folder, whose server has no collections yet."""

from pathlib import Path

import pytest

from tests.migration.models import NEW, OLD
from tests.synthetic import TINY_SHAPE, write_synthetic


def write_models(folder: Path) -> Path:
    """Two models of random weights, which agree on little."""
    for seed, name in enumerate((OLD, NEW)):
        write_synthetic(folder / f"{name}.gguf", arch="bert", shape=TINY_SHAPE, seed=seed)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with both models."""
    return write_models(tmp_path)
