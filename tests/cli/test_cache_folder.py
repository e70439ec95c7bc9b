"""A cache folder that cannot be used: one sentence that says what to do, from each command."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from fastapi.testclient import TestClient

from plimsoll.cli.commands import main
from plimsoll.composition.application import create_app
from tests.small_models import TINY, small_settings
from tests.synthetic import write_synthetic

COMMANDS = (["serve"], ["pull"], ["embed", "a ship"])


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    return write_synthetic(tmp_path / "tiny.gguf", arch="bert", shape=TINY)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A cache folder on a file system that is mounted to be read."""
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    for options in (["--bind", str(folder)], ["-o", "remount,bind,ro"]):
        done = subprocess.run(["mount", *options, str(folder)], capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"mounting is not allowed here: {done.stderr.decode()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def refusal(command: list[str], cache: Path, model_file: Path) -> str:
    """What the command says; one line, and exit code 2."""
    options = ["--model", str(model_file)] if command[0] != "pull" else [str(model_file)]
    done = CliRunner().invoke(
        main, [*command, *options, "--cache-dir", str(cache), "--cache-on-tmpfs"]
    )
    told = [line for line in done.stderr.splitlines() if line.startswith("plimsoll: ")]
    assert (done.exit_code, len(told)) == (2, 1), done.stderr
    return told[0]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_file_in_its_place_is_told_by_each_command(
    tmp_path: Path, model_file: Path, command: list[str]
):
    """`serve` says so at its start, before the first request."""
    cache = tmp_path / "cache"
    cache.write_text("a file")

    told = refusal(command, cache, model_file)

    assert f"cannot make the cache folder {cache}: there is a file of that name" in told
    assert "PLIMSOLL_CACHE_DIR" in told


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_read_only_folder_is_told_by_each_command(
    read_only: Path, model_file: Path, command: list[str]
):
    """A container with a read-only root and no volume is the usual case."""
    told = refusal(command, read_only, model_file)

    assert "Read-only file system" in told
    assert "set PLIMSOLL_CACHE_DIR" in told


def test_a_request_is_told_too(tmp_path: Path, model_file: Path):
    """A folder may break while the server runs."""
    settings = small_settings(tmp_path, model_file)
    (tmp_path / "cache").write_text("a file")
    with TestClient(create_app(settings)) as client:
        answer = client.post("/embed", json={"input": "x"})
        ready = client.get("/health/ready")

    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_unavailable")
    assert "set PLIMSOLL_CACHE_DIR" in answer.json()["error"]["message"]
    assert ready.status_code == 503
