"""Fixtures that several folders share."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from hypothesis import settings

from plimsoll.composition.application import create_app
from plimsoll.composition.models import prepare_model
from plimsoll.settings import Settings
from plimsoll.settings_sources import load_settings
from plimsoll.sidecar.cache import evict, list_sidecars
from tests.evaluation_data import DATA_DIR
from tests.fakes import TEST_HOSTS
from tests.running_server import RunningServer

# A test of hypothesis fails for what it finds, not for how busy the machine is. What lands must not
# depend on luck either; elsewhere new examples are looked for each time.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")

# Taken out of the environment: it is no setting, and a server refuses what it does not know.
TEST_CACHE = Path(given) if (given := os.environ.pop("PLIMSOLL_TEST_CACHE", "")) else None


def pytest_configure(config: pytest.Config) -> None:
    """Heed SIGINT, which a shell has its background jobs ignore, and what is started here would."""
    os.umask(0o022)  # or files of hooks that tests write would be refused, as the group's too
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of these tests."""
    parser.addoption("--soak", action="store_true", help="load servers for ten minutes a run")


@pytest.fixture(autouse=True)
def root_log_level() -> Iterator[None]:
    """A command sets the level of this process's log; the next test has the usual one."""
    before = logging.root.level
    yield
    logging.root.setLevel(before)


@pytest.fixture(scope="session")
def is_soak(request: pytest.FixtureRequest) -> bool:
    """Whether the long form of a test is asked for."""
    return bool(request.config.getoption("--soak"))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of evaluation data; skips where it is absent."""
    if not DATA_DIR.is_dir():
        pytest.skip(f"the evaluation data are not beside the project: no {DATA_DIR}")
    return DATA_DIR


@pytest.fixture(scope="session")
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder that has the built-in model, fetched at its first use on a machine.

    PLIMSOLL_TEST_CACHE, else the folder that a server has by default: what tests convert of files
    of their own is taken out of it at the end.
    """
    folder = TEST_CACHE or _default_cache(tmp_path_factory.mktemp("empty"))
    prepare_model(Settings(cache_dir=folder), lambda done_bytes, total_bytes, phase: None)
    yield folder
    ours = [
        entry.key
        for entry in list_sidecars(folder)
        if entry.source_path and entry.source_path.is_relative_to(tmp_path_factory.getbasetemp())
    ]
    if ours:
        evict(folder, ours)


@pytest.fixture(scope="session")
def builtin_file(model_cache: Path) -> Path:
    """The built-in model's GGUF file."""
    return next(model_cache.glob("*/all-MiniLM-L6-v2.F32.gguf"))


def _default_cache(empty: Path) -> Path:
    environ = {"XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", "")}
    return load_settings(environ=environ, directory=empty).settings.cache_dir


@pytest.fixture(scope="session")
def client(model_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """The application with the built-in model, without a socket."""
    settings = Settings(
        cache_dir=model_cache,
        data_dir=tmp_path_factory.mktemp("data"),
        idle_unload_s=0,
        allowed_hosts=TEST_HOSTS,
    )
    with TestClient(create_app(settings)) as client:
        yield client


@pytest.fixture(scope="session")
def server(model_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with the built-in model and a body limit of 1 MiB, in a process of its own."""
    folder = tmp_path_factory.mktemp("server")
    options = ("--cache-dir", str(model_cache), "--body-limit", "1M")
    with RunningServer(folder, *options) as server:
        yield server
    (folder / "server.log").write_text(server.log, encoding="utf-8")
