"""What the tests of commands share."""

import logging
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from click.testing import CliRunner, Result

from plimsoll.cli.commands import main
from tests.small_models import TINY
from tests.synthetic import write_synthetic


class Commands:
    """Runs commands inside this process, with a cache folder of their own."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache

    def __call__(self, *arguments: str, **variables: str) -> Result:
        environ = {"PLIMSOLL_CACHE_DIR": str(self.cache), "PLIMSOLL_CACHE_ON_TMPFS": "true"}
        done = CliRunner().invoke(main, arguments, env=environ | variables)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Commands]:
    """Commands in an empty folder, without a hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    level = logging.root.level
    yield Commands(tmp_path / "cache")
    logging.root.setLevel(level)


@pytest.fixture
def stored(run: Commands) -> Path:
    """A small model in the cache, as a download of the hub lies there."""
    models = run.cache / "models"
    models.mkdir(parents=True, mode=0o700)
    run.cache.chmod(0o700)
    return write_synthetic(models / "a--b--tiny.gguf", arch="bert", shape=TINY)
