"""What several files of tests of the server share."""

import pytest

from tests.small_models import TINY
from tests.synthetic import write_synthetic


@pytest.fixture(scope="package")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of a server that is there at once."""
    folder = tmp_path_factory.mktemp("tiny")
    file = write_synthetic(folder / "tiny.gguf", arch="bert", shape=TINY)
    return ["--model", str(file), "--cache-dir", str(folder / "cache")]
