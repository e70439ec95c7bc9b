"""Tables on a terminal and elsewhere."""

import os
import pty
import subprocess
import sys

import pytest

from tests.running_server import DEADLINE_S, environment

SHOW = """
from plimsoll.cli.tables import print_table
print_table(("name", "n", "found"), [("a" * 30, "1", "word " * 30), ("b", "22", ("ok", "green"))],
            numbers=("n",))
"""


def on_a_terminal(**variables: str) -> str:
    """What a terminal of 80 columns is sent."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", SHOW],
        stdout=theirs,
        stdin=subprocess.DEVNULL,
        env=environment(COLUMNS="80", TERM="xterm", **variables),
    )
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 4096):
            shown += part
    except OSError:  # the terminal's end, on Linux
        pass
    finally:
        os.close(ours)
    assert process.wait(timeout=DEADLINE_S) == 0
    return shown.decode()


def test_a_terminal_gets_colour_and_lines_that_fit():
    """A line that is wider is broken by the terminal, in the middle of a column."""
    shown = on_a_terminal()
    assert "\x1b[32mok" in shown
    lines = on_a_terminal(NO_COLOR="1").replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("a" * 30) for line in lines)


def test_no_color_takes_the_colour_away():
    """As no-color.org asks."""
    assert "\x1b[32m" not in on_a_terminal(NO_COLOR="1")


@pytest.mark.parametrize("variables", [{}, {"COLUMNS": "20"}])
def test_elsewhere_a_row_is_a_line(variables: dict[str, str]):
    """grep, cut and awk take lines, without colours and without blanks at their ends."""
    done = subprocess.run(
        [sys.executable, "-c", SHOW],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=True,
    )
    head, first, second = done.stdout.splitlines()
    assert head.split() == ["name", "n", "found"]
    assert first == f"{'a' * 30}   1  {('word ' * 30).rstrip()}"
    assert second == f"{'b':<30}  22  ok"
