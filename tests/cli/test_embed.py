"""`plimsoll embed` at a pipe, a terminal and a full disk: rows as they come, and no traceback."""

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from tests.running_server import DEADLINE_S, environment
from tests.small_models import TINY
from tests.synthetic import write_synthetic


class Command:
    """Runs `plimsoll embed` with a model that loads in a moment. Ends what it has started."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        self._line = [sys.executable, "-m", "plimsoll", "embed", "--model", str(model)]
        self._line += ["--cache-dir", str(folder / "cache"), "--cache-on-tmpfs"]
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, **options: object) -> "subprocess.Popen[str]":
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(
            [*self._line, *arguments],
            env=environment(),
            cwd=self.folder,
            **{"text": True, **pipes, **options},
        )
        self._started.append(process)
        return process

    def run(self, *arguments: str, given: str = "", **options: object) -> tuple[int, str, str]:
        """Exit code, standard output and error."""
        process = self.start(*arguments, **options)
        out, told = process.communicate(given if process.stdin else None, timeout=DEADLINE_S)
        assert "Traceback" not in told
        return process.returncode, out, told

    def shell(self, redirection: str) -> tuple[int, str]:
        """Exit code and standard error of `plimsoll embed ship` with a shell's redirection."""
        line = ["sh", "-c", f'"$@" {redirection}', "sh", *self._line]
        done = subprocess.run(
            line, env=environment(), cwd=self.folder, capture_output=True, timeout=DEADLINE_S
        )
        assert b"Traceback" not in done.stderr
        assert b"Exception ignored" not in done.stderr
        return done.returncode, done.stderr.decode()

    def close(self) -> None:
        for process in self._started:
            process.kill()
            with process:  # closes its pipes
                pass


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("tiny") / "tiny.gguf", arch="bert", shape=TINY)


@pytest.fixture
def embed(tmp_path: Path, model: Path) -> Iterator[Command]:
    command = Command(tmp_path, model)
    yield command
    command.close()


def indexes(lines: Sequence[str]) -> list[int]:
    return [json.loads(line)["index"] for line in lines]


# --- as they come ---------------------------------------------------------------------------


def test_a_pipe_that_stays_open_gets_its_rows(embed: Command):
    """`tail -f log | plimsoll embed -`: the end never comes."""
    process = embed.start("-")
    for index in range(3):
        process.stdin.write("ship\n")
        process.stdin.flush()
        assert indexes([process.stdout.readline()]) == [index]
    process.stdin.close()
    assert process.wait(DEADLINE_S) == 0


def test_a_dash_stands_for_standard_input_among_arguments(embed: Command):
    """In its place."""
    code, out, _ = embed.run("first", "-", "last", given="middle\nmiddle")
    assert code == 0
    assert indexes(out.splitlines()) == [0, 1, 2, 3]
    first, *_, last = map(json.loads, out.splitlines())
    assert first["embedding"] != last["embedding"]


def test_lines_that_arrive_in_pieces_are_whole_texts(embed: Command):
    """A pipe cuts where it likes, also inside of a character."""
    process = embed.start("-", text=False)
    for piece in ("schön".encode()[:4], "schön\nzw".encode()[4:], b"ei\r\n\n"):
        process.stdin.write(piece)
        process.stdin.flush()
    out, _ = process.communicate(timeout=DEADLINE_S)
    assert indexes(out.splitlines()) == [0, 1, 2]


def test_a_terminal_is_told_that_it_is_waited_for(embed: Command):
    """A command that seems to hang is interrupted."""
    ours, theirs = pty.openpty()
    process = embed.start(stdin=theirs)
    os.close(theirs)
    assert any("Ctrl-D ends" in line for line in iter(process.stderr.readline, ""))
    os.write(ours, b"ship\n\x04")
    assert indexes([process.stdout.readline()]) == [0]
    assert process.wait(DEADLINE_S) == 0
    os.close(ours)


# --- files ----------------------------------------------------------------------------------


def test_a_numpy_file_holds_what_is_printed(embed: Command):
    """Written as rows come, in more lists than one; NaN where a text has no vector."""
    texts = "ship\n\n" + "hull\n" * 200
    code, out, told = embed.run("--output", "x.npy", given=texts)
    _, printed, _ = embed.run(given=texts)

    found = np.load(embed.folder / "x.npy")
    assert (code, out) == (1, "")
    assert "text 1: the text has no tokens" in told
    assert (found.shape, found.dtype) == ((202, 64), np.float32)
    assert np.isnan(found[1]).all()
    first = json.loads(printed.splitlines()[0])["embedding"]
    np.testing.assert_array_equal(found[0], np.array(first, np.float32))
    assert [path.name for path in embed.folder.glob("x*")] == ["x.npy"]


def test_a_parquet_file_holds_text_and_vector(embed: Command):
    """A table that can be read without the file of texts."""
    code, _, _ = embed.run("--output", "x.parquet", given="ship\n\n" + "hull\n" * 1100)

    table = parquet.read_table(embed.folder / "x.parquet")
    assert code == 1
    assert table.column_names == ["index", "text", "embedding", "error", "truncated"]
    assert table["index"].to_pylist() == list(range(1102))
    assert table["text"].to_pylist()[:3] == ["ship", "", "hull"]
    assert len(table["embedding"][0].as_py()) == 64
    assert table["embedding"][1].as_py() is None
    assert "no tokens" in table["error"][1].as_py()


def test_ctrl_c_leaves_the_rows_that_are_there(embed: Command):
    """A stream has no other end."""
    process = embed.start("first", "-", "--output", "x.npy")
    said = iter(process.stderr.readline, "")
    while not n_written(embed) and process.poll() is None:
        process.stdin.write("ship\n" * 50)  # until the file's buffer is full
        process.stdin.flush()
    process.send_signal(signal.SIGINT)
    told = "".join(said)

    assert process.wait(DEADLINE_S) == 130
    assert "interrupted after" in told
    assert "Traceback" not in told
    assert len(np.load(embed.folder / "x.npy")) > 1
    assert not n_written(embed)


def n_written(embed: Command) -> int:
    """Bytes of x.npy before it has its name."""
    return sum(path.stat().st_size for path in embed.folder.glob("x.npy*.tmp"))


def test_two_commands_that_write_one_file_do_not_mix(embed: Command):
    """A nightly job that is started again while the last one still runs."""
    first, second = (embed.start("-", "--output", "x.npy") for _ in range(2))
    for process in (first, second):
        n_before = n_written(embed)
        while n_written(embed) == n_before and process.poll() is None:
            process.stdin.write("ship\n" * 50)  # until the file's buffer is full
            process.stdin.flush()
    first.communicate(timeout=DEADLINE_S)
    found = np.load(embed.folder / "x.npy")
    second.communicate("hull\n" * 50, timeout=DEADLINE_S)

    assert (first.returncode, second.returncode) == (0, 0)
    assert np.unique(found, axis=0).shape == (1, 64)
    assert np.unique(np.load(embed.folder / "x.npy"), axis=0).shape == (2, 64)
    assert [path.name for path in embed.folder.glob("x*")] == ["x.npy"]


def test_parquet_without_pyarrow_says_what_to_install(embed: Command):
    """An extra that is missing is no bug of the program."""
    (embed.folder / "pyarrow.py").write_text("raise ImportError('no pyarrow')\n")
    code, out, told = embed.run("ship", "--output", "x.parquet")
    assert (code, out) == (2, "")
    assert "pip install pyarrow, or '.[parquet]' in a checkout" in told
    assert list(embed.folder.glob("x*")) == []


@pytest.mark.parametrize(
    ("output", "told"),
    [("x.csv", "x.npy, x.parquet or -"), ("nowhere/x.npy", "cannot write nowhere/x.npy: No such")],
)
def test_an_output_that_cannot_be_is_refused_before_the_model_loads(
    embed: Command, output: str, told: str
):
    """Not after an hour of embedding."""
    code, out, said = embed.run("ship", "--output", output)
    assert (code, out) == (2, "")
    assert told in said
    assert not (embed.folder / "cache").exists()


# --- closed and full ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("redirection", "code", "told"),
    [
        ("ship >/dev/full", 2, "cannot write standard output: No space left on device"),
        ("ship >&-", 2, "standard output is closed"),
        ("<&-", 2, "standard input is closed"),
    ],
)
def test_what_a_shell_has_closed_or_filled_is_named(
    embed: Command, redirection: str, code: int, told: str
):
    """One line instead of a traceback, and an exit code that a script sees."""
    found, said = embed.shell(redirection)
    assert found == code
    assert told in said


def test_a_reader_that_has_enough_ends_it_quietly(embed: Command):
    """`plimsoll embed - | head -1`."""
    process = embed.start("-")
    process.stdin.write("ship\n")
    process.stdin.flush()
    process.stdout.readline()
    process.stdout.close()
    process.stdin.write("ship\n")
    process.stdin.close()
    assert process.wait(DEADLINE_S) == 1
    assert [line for line in process.stderr if not line.startswith("write ")] == []


def test_ctrl_c_before_the_first_row_is_no_traceback(embed: Command):
    """And no file."""
    process = embed.start("--output", "x.npy")
    while not (embed.folder / "cache" / "sidecars").exists() and process.poll() is None:
        pass
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=DEADLINE_S)
    assert process.returncode != 0
    assert "Traceback" not in told
    assert list(embed.folder.glob("x*")) == []
