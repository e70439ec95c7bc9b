"""Small models in a folder, whose server has no collections yet."""

from pathlib import Path

import pytest

from tests.migration.models import NAMES
from tests.synthetic import TINY_SHAPE, write_synthetic


def write_models(folder: Path) -> Path:
    """A model, the same in another quantization, and one of random weights beside both."""
    for name, quant, seed in zip(NAMES, ("F32", "Q8_0", "F32"), (0, 0, 1), strict=True):
        path = folder / f"{name}.gguf"
        write_synthetic(path, arch="bert", quant=quant, shape=TINY_SHAPE, seed=seed)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with these models."""
    return write_models(tmp_path)
