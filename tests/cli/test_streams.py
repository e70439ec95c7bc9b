"""What a shell does to a command: full disks, broken pipes, closed streams, Ctrl-C.

In processes of their own, for it is their streams and signals that matter. None may end in a
traceback, and each in the exit code that a script expects.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running_server import DEADLINE_S, environment

PLIMSOLL = f"'{sys.executable}' -P -m plimsoll"  # -P: no look into the working folder
FULL = Path("/dev/full")


@pytest.fixture
def shell(tmp_path: Path):
    """Run a line of the shell in an empty folder; returns exit code and standard error."""

    def run(line: str) -> tuple[int, str]:
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", line.replace("plimsoll", PLIMSOLL, 1)],
            cwd=tmp_path,
            env=environment(
                PLIMSOLL_CACHE_DIR=str(tmp_path / "cache"), PLIMSOLL_CACHE_ON_TMPFS="true"
            ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=DEADLINE_S,
            text=True,
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert "Exception ignored" not in done.stderr, done.stderr
        return done.returncode, done.stderr

    return run


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
@pytest.mark.parametrize("command", ["config --json", "--help"])
def test_a_full_standard_output_is_one_line(shell, command: str):
    """A report that was cut must not look whole to the script that asked for it."""
    assert shell(f"plimsoll {command} >/dev/full") == (2, "plimsoll: standard output is full\n")


def test_a_reader_that_stops_is_no_fault(shell):
    """`plimsoll config | head -1` is everyday use."""
    code, told = shell("plimsoll config | head -c 1 >/dev/null")
    assert code in (0, 1)  # 1 where the pipe broke before the end
    assert told == ""


def test_closed_streams_are_streams_at_their_end(shell):
    """Some supervisors start programs so."""
    assert shell("plimsoll config >&-") == (0, "")
    assert shell("plimsoll config >/dev/null 2>&-") == (0, "")
    assert shell("plimsoll simulate --limit 400M --trace - <&-") == (0, "")


def test_a_working_folder_that_is_gone_is_no_fault_of_the_settings(shell):
    """Nothing is read from it, and nothing said of it unless a path needs it."""
    away = 'mkdir gone && cd gone && rmdir "$PWD"'
    assert shell(f"{away} && plimsoll config") == (0, "")
    code, told = shell(f"{away} && plimsoll pull ./model.gguf")
    assert (code, told) == (2, "plimsoll: the working folder is gone; change to another\n")


def test_ctrl_c_ends_with_130(tmp_path: Path):
    """At any moment; a loop in a shell stops with the command."""
    process = subprocess.Popen(
        [sys.executable, "-m", "plimsoll", "simulate", "--limit", "400M", "--trace", "-"],
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        # It has read this line, so it is past its imports.
        fill_pipe(process)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
    assert process.returncode == 130
    assert b"Traceback" not in told


def fill_pipe(process: subprocess.Popen) -> None:
    """Write more than a pipe holds, which returns once the command reads."""
    assert process.stdin is not None
    line = b'{"at_s": 0, "tokens": [1]}\n'
    os.write(process.stdin.fileno(), line * (1 << 17 >> 4))
