"""How far a command has come, on standard error: one named line a phase.

On a terminal a bar moves and leaves its line when the phase is over. Elsewhere a line is written
every few seconds while the phase lasts, and when it is over. Texts and documents that are done in a
moment leave no line there, since a script embeds a few at a time.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Literal, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

LINE_EVERY_S = 3.0

Unit = Literal["bytes", "texts", "documents"]


class PhaseProgress:
    """Owns the line that is being written. subject: what the phases are about."""

    def __init__(self, subject: str, unit: Unit = "bytes", stream: TextIO | None = None) -> None:
        """Write nothing yet."""
        self._subject = subject
        self._unit = unit
        self._stream = stream or sys.stderr
        self._bar = _make_bar(unit, self._stream) if self._stream.isatty() else None
        self._phase: str | None = None
        self._done = 0
        self._total: int | None = None
        self._began_s = self._next_line_s = 0.0
        self._has_told = False

    def __call__(self, done: int, total: int | None, phase: str, told: str = "") -> None:
        """Say how far `phase` is; another name than before ends the one before.

        total: None where it is not known beforehand. told: what else is to be said, now.
        """
        if phase != self._phase:
            self.end_phase()
            self._begin(phase)
        self._done, self._total = done, total
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total, told=told)
        elif monotonic() >= self._next_line_s:
            self._next_line_s = monotonic() + LINE_EVERY_S
            self._has_told = True
            self._write(f"{self._how_far(done, total)}{told and f', {told}'} ...")

    def end_phase(self) -> None:
        """Leave the line of a phase that has come to its end."""
        if self._phase is None:
            return
        self._stop_bar()
        seconds = monotonic() - self._began_s
        if self._bar is not None or self._has_told or self._unit == "bytes":
            self._write(f"{self._amount(self._done)} in {seconds:.1f} s")
        self._phase = None

    def stop(self) -> None:
        """Take the bar away after a failure; the phase gets no last line."""
        self._stop_bar()
        self._phase = None

    def _begin(self, phase: str) -> None:
        self._phase, self._has_told = phase, False
        self._began_s = monotonic()
        self._next_line_s = self._began_s + 1.0
        if self._bar is not None:
            self._bar.add_task(f"{phase} {self._subject}", total=None, told="")
            self._bar.start()

    def _stop_bar(self) -> None:
        if self._bar is not None and self._bar.task_ids:
            self._bar.stop()
            self._bar.remove_task(self._bar.task_ids[0])

    def _how_far(self, done: int, total: int | None) -> str:
        if total is None:
            return self._amount(done)
        part = self._amount(done) if self._unit == "bytes" else f"{done:,}"
        return f"{part} of {self._amount(total)}"

    def _amount(self, n: int) -> str:
        return _megabytes(n) if self._unit == "bytes" else f"{n:,} {self._unit}"

    def _write(self, told: str) -> None:
        self._stream.write(f"{self._phase} {self._subject}: {told}\n")
        self._stream.flush()


@contextmanager
def progress_of(subject: str, unit: Unit = "bytes") -> Iterator[PhaseProgress]:
    """Show progress on standard error for the length of a `with` block."""
    progress = PhaseProgress(subject, unit)
    try:
        yield progress
    except BaseException:
        progress.stop()
        raise
    progress.end_phase()


def _megabytes(n_bytes: int) -> str:
    """Megabytes of a million bytes, as package indexes and hubs count them."""
    return f"{n_bytes / 1e6:.0f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:.0f} kB"


def _make_bar(unit: Unit, stream: TextIO) -> "Bar":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns: list[ProgressColumn] = [MofNCompleteColumn()]
    if unit == "bytes":
        columns = [DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *columns,
        TextColumn("{task.fields[told]}", markup=False),
        console=Console(file=stream),
        transient=True,
    )
