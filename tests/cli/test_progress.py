"""What is said while a command takes long: one line a phase, on a terminal and elsewhere."""

import io
import sys
from typing import Any

import pytest

from plimsoll.cli import links
from plimsoll.cli import progress as progress_module
from plimsoll.cli.commands import main
from plimsoll.cli.progress import PhaseProgress, progress_of


class Terminal(io.StringIO):
    """Takes what a terminal would show."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds; a test sets the first."""
    now_s = [100.0]
    monkeypatch.setattr(progress_module, "monotonic", lambda: now_s[0])
    return now_s


def test_a_phase_says_every_few_seconds_how_far_it_is(clock: list[float]):
    """A log without a line for a minute looks like a program that hangs."""
    stream = io.StringIO()
    progress = PhaseProgress("builtin", stream=stream)
    for second in range(8):
        clock[0] = 100.0 + second
        progress(second * 10_000_000, 84_000_000, "download")
    progress(91_000_000, 91_000_000, "convert")
    progress.end_phase()

    assert stream.getvalue().splitlines() == [
        "download builtin: 10 MB of 84 MB ...",
        "download builtin: 40 MB of 84 MB ...",
        "download builtin: 70 MB of 84 MB ...",
        "download builtin: 70 MB in 7.0 s",
        "convert builtin: 91 MB in 0.0 s",
    ]


def test_a_few_texts_leave_no_line_in_a_script(clock: list[float]):
    """Standard error of a script is for what is wrong."""
    stream = io.StringIO()
    progress = PhaseProgress("builtin", "texts", stream)
    progress(3, None, "embed")
    progress.end_phase()
    assert stream.getvalue() == ""

    progress(3, None, "embed")
    clock[0] += 60
    progress(1234, None, "embed")
    progress.end_phase()
    assert stream.getvalue().splitlines() == [
        "embed builtin: 1,234 texts ...",
        "embed builtin: 1,234 texts in 60.0 s",
    ]


def test_what_is_told_beside_it_is_in_the_line(clock: list[float]):
    """Such as why a migration waits."""
    stream = io.StringIO()
    progress = PhaseProgress("ships", "documents", stream)
    progress(0, 1200, "running")
    clock[0] += 60
    progress(600, 1200, "running", "10/s, 1 min 00 s left")
    progress.end_phase()

    assert stream.getvalue().splitlines() == [
        "running ships: 600 of 1,200 documents, 10/s, 1 min 00 s left ...",
        "running ships: 600 documents in 60.0 s",
    ]


def test_a_terminal_keeps_one_line_a_phase(monkeypatch: pytest.MonkeyPatch):
    """The bar is gone when the phase is over."""
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    progress = PhaseProgress("a [b]", stream=stream)
    progress(50_000_000, 100_000_000, "download")
    progress(100_000_000, 100_000_000, "download")
    progress(1_000, 1_000, "write")
    progress.end_phase()

    said = stream.getvalue()
    assert "download a [b]: 100 MB in 0." in said
    assert "write a [b]: 1 kB in 0." in said


def test_a_failure_leaves_no_line_of_success(capsys: pytest.CaptureFixture[str]):
    """The error's own line is the last."""

    def fail() -> None:
        with progress_of("builtin") as progress:
            progress(1, 2, "download")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert capsys.readouterr().err == ""


def test_ctrl_c_at_a_pull_gives_the_terminal_its_cursor_back(monkeypatch: pytest.MonkeyPatch):
    """The shell's own line would have none."""

    class Interrupted:
        def request(self, method: str, path: str, *_: Any) -> dict[str, Any]:
            if method == "GET":
                raise KeyboardInterrupt
            return {"pulling": True, "rows": 7, "waits": None}

    stream = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(links, "client_of", lambda given: Interrupted())
    monkeypatch.setattr(links, "LOOK_EVERY_S", 0.0)

    with pytest.raises(SystemExit) as left:
        main(["links", "pull", "ships"])
    assert left.value.code == 130
    hidden, shown = (stream.getvalue().rfind(f"\x1b[?25{letter}") for letter in "lh")
    assert 0 <= hidden < shown
