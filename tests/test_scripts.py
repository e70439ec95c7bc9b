"""scripts/test and scripts/serve in a checkout of their own, interrupted, moved and started twice.

A stand-in for Python makes and fills .venv, as quickly as `cp`: it fails where Python and pip would
fail, and it can stop at any moment of theirs until the test lets it go on or ends it.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running_server import DEADLINE_S, ROOT, environment
from tests.small_models import TINY
from tests.synthetic import write_synthetic

# What Python and pip do, step by step. `pause` names the moments that a test may stop at.
STAND_IN = """
import os, pathlib, shutil, sys

started_as, *arguments = sys.argv[1:]
venv = pathlib.Path(started_as).parent.parent


def pause(moment):
    if moment == os.environ.get("PAUSE"):
        print("paused:", moment, file=sys.stderr, flush=True)
        sys.stdin.read()  # until the test closes it


def make(venv):
    if venv.exists():
        (venv / "bin/plimsoll").unlink(missing_ok=True)
        pause("removing")
        shutil.rmtree(venv)
    (venv / "bin").mkdir(parents=True)
    pause("no python")
    shutil.copy(started_as, venv / "bin/python")
    pause("no pip")
    (venv / "pip").touch()


def install(wanted):
    pause("pip has begun")
    if os.environ.get("REFUSE"):
        sys.exit("pip: no network")
    known = venv / "metadata"
    if "--dry-run" in arguments or known.exists() and known.read_text() == wanted:
        return
    (venv / "code").unlink(missing_ok=True)
    known.write_text(wanted)
    print("Collecting stand-in", flush=True)
    pause("half installed")
    (venv / "code").touch()
    command = venv / "bin/plimsoll"
    command.write_text(f'#!/bin/sh\\nexec "{venv.resolve()}/bin/python" -m plimsoll "$@"\\n')
    command.chmod(0o755)


match arguments:
    case ["-c", code]:
        sys.version_info = (3, int(os.environ.get("MINOR", 11)))
        exec(code)
    case ["-m", "venv", *_, folder]:
        make(pathlib.Path(folder))
    case ["-m", "pip", *_]:
        if not (venv / "pip").exists():
            sys.exit("No module named pip")
        try:
            install(pathlib.Path("pyproject.toml").read_text())
        except KeyboardInterrupt:  # pip ends by an exit code, not by the signal
            sys.exit(1)
    case ["-m", "pytest", *_]:
        if not (venv / "code").exists():
            sys.exit("No module named pytest")
        print("tested")
    case _:
        os.execv(sys.executable, [sys.executable, *arguments])
"""

LISTS = ("pyproject.toml", "requirements.txt")
MOMENTS = ("no python", "no pip", "pip has begun", "half installed")


class Script:
    """A running script of the checkout, in a process group of its own as a terminal gives it."""

    def __init__(self, command: Path, *arguments: str, **variables: str) -> None:
        self._output: list[str] = []
        self.process = subprocess.Popen(
            [command, *arguments],
            env=environment(**variables),
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def wait_for(self, words: str) -> str:
        """Read until a line that holds these words, and return it."""
        for line in self.process.stdout:
            self._output.append(line)
            if words in line:
                return line
        raise AssertionError(f"it ended without saying {words!r}:\n{''.join(self._output)}")

    def end(self) -> str:
        """Let it go on until it and its children have ended; returns all that they have said."""
        said, _ = self.process.communicate(timeout=DEADLINE_S)
        self._output.append(said)
        return "".join(self._output)

    def signal_all(self, number: signal.Signals) -> None:
        """As a terminal does."""
        os.killpg(self.process.pid, number)


class Checkout:
    """A copy of the scripts and lists, beside a stand-in for Python. Ends what it has started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkout"
        (self.folder / "scripts").mkdir(parents=True)
        for file in ("scripts/environment", "scripts/serve", "scripts/test", *LISTS):
            shutil.copy(ROOT / file, self.folder / file)
        (self.folder / "app").symlink_to(ROOT / "app")
        stand_in = folder / "stand_in.py"
        stand_in.write_text(STAND_IN)
        self._python = folder / "python"
        self._python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{stand_in}" "$0" "$@"\n')
        self._python.chmod(0o755)
        self._started: list[Script] = []

    @property
    def venv(self) -> Path:
        return self.folder / ".venv"

    def start(self, name: str, *arguments: str, **variables: str) -> Script:
        variables = {"PYTHON": str(self._python), "PYTHONPATH": "", **variables}
        script = Script(self.folder / "scripts" / name, *arguments, **variables)
        self._started.append(script)
        return script

    def run(self, name: str, *arguments: str, **variables: str) -> str:
        """Run to a good end; returns all that was said."""
        script = self.start(name, *arguments, **variables)
        said = script.end()
        assert script.process.returncode == 0, said
        return said

    def change_lists(self) -> None:
        """Ask for other packages than those that are installed."""
        lists = self.folder / "pyproject.toml"
        lists.write_text(lists.read_text() + "\n")
        newest = max(mark.stat().st_mtime for mark in self.venv.glob(".*")) + 1
        os.utime(lists, (newest, newest))

    def close(self) -> None:
        for script in self._started:
            if script.process.poll() is None:
                script.signal_all(signal.SIGKILL)
            with script.process:  # closes its pipes
                pass


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Checkout]:
    checkout = Checkout(tmp_path)
    yield checkout
    checkout.close()


# --- .venv ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_that_is_interrupted_is_simply_run_again(
    checkout: Checkout, moment: str, number: signal.Signals
):
    """The first start takes a minute, and people press Ctrl+C; "No module named pip" for good is
    what they got."""
    first = checkout.start("test", PAUSE=moment)
    first.wait_for("paused")
    first.signal_all(number)
    assert "tested" not in first.end()
    assert first.process.returncode != 0

    assert "tested" in checkout.run("test")


@pytest.mark.parametrize("moment", ["pip has begun", "half installed"])
def test_an_interrupted_update_is_simply_run_again(checkout: Checkout, moment: str):
    """A .venv that was whole is half of two versions then, and pip takes it for the new one."""
    checkout.run("test")
    checkout.change_lists()

    update = checkout.start("test", PAUSE=moment)
    update.wait_for("paused")
    update.signal_all(signal.SIGINT)
    assert "tested" not in update.end()

    assert "tested" in checkout.run("test")


def test_an_interrupted_removal_is_simply_run_again(checkout: Checkout):
    """Even where the checkout is moved back to where the removed .venv was whole."""
    checkout.run("test")
    home = checkout.folder
    away = checkout.folder = home.rename(home.with_name("moved"))

    removal = checkout.start("test", PAUSE="removing")
    removal.wait_for("paused")
    removal.signal_all(signal.SIGKILL)
    removal.end()
    checkout.folder = away.rename(home)

    assert "serve [OPTIONS]" in checkout.run("serve", "--help")


def test_an_update_that_pip_refuses_leaves_venv_as_it_was(checkout: Checkout):
    """Without a network an edit of pyproject.toml must not cost the packages that are there."""
    checkout.run("test")
    written_ns = (checkout.venv / ".whole").stat().st_mtime_ns
    checkout.change_lists()

    refused = checkout.start("test", REFUSE="1")

    assert "no network" in refused.end()
    assert refused.process.returncode == 1
    assert (checkout.venv / ".whole").stat().st_mtime_ns == written_ns
    assert "making .venv" not in checkout.run("test")


def test_a_whole_venv_is_left_alone(checkout: Checkout):
    """The second start is quick and needs no network."""
    checkout.run("test")

    assert checkout.run("test", REFUSE="1").endswith("cores\ntested\n")


def test_a_moved_checkout_starts(checkout: Checkout):
    """The commands of .venv begin with the path of a Python that is gone."""
    checkout.run("test")
    checkout.folder = checkout.folder.rename(checkout.folder.with_name("moved here"))

    assert "serve [OPTIONS]" in checkout.run("serve", "--help")


def test_a_copied_checkout_does_not_run_the_code_it_was_copied_from(checkout: Checkout):
    """It would start, and serve the other folder."""
    checkout.run("test")
    copy = checkout.folder.with_name("copy")
    shutil.copytree(checkout.folder, copy, symlinks=True)
    checkout.folder = copy

    checkout.run("test")

    assert str(copy) in (checkout.venv / "bin/plimsoll").read_text()


@pytest.mark.parametrize("gone", ["bin/python", "the old version"])
def test_a_venv_whose_python_is_gone_is_made_again(checkout: Checkout, gone: str):
    """An upgrade of the system takes it away, or puts another in its place that has no packages."""
    checkout.run("test")
    if gone == "bin/python":
        (checkout.venv / gone).unlink()

    assert "making .venv again" in checkout.run("test", MINOR="12")


def test_a_python_that_is_too_old_is_refused_and_changes_nothing(checkout: Checkout):
    """With what to do about it."""
    refused = checkout.start("test", MINOR="10")

    assert refused.end() == (
        "Plimsoll needs Python 3.11 or newer; set PYTHON=/path/to/python3.11\n"
    )
    assert refused.process.returncode == 1
    assert not checkout.venv.exists()


def test_one_venv_serves_a_folder_under_all_its_names(checkout: Checkout):
    """A symbolic link is no move."""
    checkout.run("test")
    link = checkout.folder.with_name("link")
    link.symlink_to(checkout.folder)
    checkout.folder = link

    assert checkout.run("test", CDPATH=str(link)).endswith("cores\ntested\n")


def test_an_installation_says_every_few_seconds_what_it_does(checkout: Checkout):
    """It takes a minute, and silence looks like a program that hangs."""
    first = checkout.start("test", PAUSE="half installed")
    first.wait_for("paused")
    line = first.wait_for("install plimsoll[dev]: Collecting stand-in ...")

    assert line.endswith(" s)\n")
    assert "install plimsoll[dev]: done in" in first.end()


@pytest.mark.skipif(shutil.which("flock") is None, reason="there is no flock here")
def test_scripts_that_start_at_once_make_one_venv(checkout: Checkout):
    """The second would empty the folder that the first one fills."""
    first = checkout.start("test", PAUSE="half installed")
    first.wait_for("paused")
    second = checkout.start("test")
    second.wait_for("waiting for another script")

    assert "tested" in first.end()
    said = second.end()
    assert "tested" in said
    assert "making" not in said
    assert "installing" not in said


@pytest.mark.skipif(shutil.which("flock") is None, reason="there is no flock here")
def test_a_pip_that_outlives_its_script_is_waited_for(checkout: Checkout):
    """`kill -9` ends a script and not its children, which go on writing to .venv."""
    first = checkout.start("test", PAUSE="half installed")
    first.wait_for("paused")
    first.process.kill()
    second = checkout.start("test")
    second.wait_for("waiting for another script")
    first.end()

    assert "tested" in second.end()


# --- serve ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("tiny") / "tiny.gguf", arch="bert", shape=TINY)


@pytest.mark.parametrize("place", ["--model=FILE", "--config TOML"])
def test_serve_fetches_the_model_that_it_is_told_to_serve(
    checkout: Checkout, tmp_path: Path, tiny_file: Path, place: str
):
    """And none besides: it fetched the one that it would serve without any options."""
    toml = tmp_path / "other.toml"
    toml.write_text(f"model = '{tiny_file}'\n")
    options = place.replace("FILE", str(tiny_file)).replace("TOML", str(toml)).split(" ")
    cache = tmp_path / "cache"

    server = checkout.start(
        "serve", *options, "--cache-dir", str(cache), "--cache-on-tmpfs", "--port", "0",
        PLIMSOLL_MODEL="" if "TOML" in place else "/nowhere.gguf",
    )  # fmt: skip
    ready = server.wait_for("is ready in")
    server.wait_for("Uvicorn running on")
    server.process.send_signal(signal.SIGTERM)  # to the process that was started, not to the group
    said = server.end()

    assert ready.startswith(f"{tiny_file} is ready in {cache}")
    assert server.process.returncode == 0, said
    assert len([path for path in (cache / "sidecars").iterdir() if path.is_dir()]) == 1


def test_serve_ends_by_saying_what_to_try_and_how_to_stop(
    checkout: Checkout, tmp_path: Path, tiny_file: Path
):
    """Also where there is no terminal; every phase before it has a line of its own."""
    options = ("--model", str(tiny_file), "--cache-dir", str(tmp_path / "cache"))
    server = checkout.start("serve", *options, "--cache-on-tmpfs", "--port", "0")
    server.wait_for("install plimsoll: done in")
    server.wait_for(f"write {tiny_file}: ")
    server.wait_for("  try   curl -s http://127.0.0.1:")
    stop = server.wait_for("  stop  ")
    assert f"kill {server.process.pid}" in stop
    server.process.send_signal(signal.SIGTERM)
    server.end()


def test_a_port_that_is_taken_is_told_before_anything_is_fetched(
    checkout: Checkout, tmp_path: Path, tiny_file: Path
):
    """In one line; the download would have been in vain."""
    cache = tmp_path / "cache"
    settings = {"PLIMSOLL_MODEL": str(tiny_file), "PLIMSOLL_CACHE_DIR": str(cache)}
    checkout.run("serve", "--help", **settings)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = checkout.start("serve", "--port", str(port), **settings)
        [line] = refused.end().splitlines()

    assert f"cannot listen on port {port} of 127.0.0.1: address already in use" in line
    assert refused.process.returncode == 3
    assert not cache.exists()


def test_help_of_serve_fetches_nothing(checkout: Checkout, tmp_path: Path):
    """A person who asks how it works has not asked for a model."""
    cache = tmp_path / "cache"
    settings = {"PLIMSOLL_MODEL": "/nowhere.gguf", "PLIMSOLL_CACHE_DIR": str(cache)}

    said = checkout.run("serve", "--help", **settings)

    assert said.count("serve [OPTIONS]") == 1
    assert "--port" in said
    assert "nowhere" not in said
    assert not cache.exists()


def test_a_mistake_in_the_options_of_serve_is_told_before_anything_is_fetched(
    checkout: Checkout, tmp_path: Path, tiny_file: Path
):
    """The model that would be served without `--modle` may be gigabytes."""
    cache = tmp_path / "cache"
    settings = {"PLIMSOLL_MODEL": str(tiny_file), "PLIMSOLL_CACHE_DIR": str(cache)}

    refused = checkout.start("serve", "--modle=x", **settings)

    assert "No such option" in refused.end()
    assert refused.process.returncode == 2
    assert not cache.exists()
