"""How far a run has come, on standard error."""

from typing import TextIO

from .replies import Outcome
from .tally import Tally

LINE_EVERY_S = 5.0
ERASE_LINE = "\r\x1b[K"


class Progress:
    """One line that changes on a terminal, else a line every few seconds."""

    def __init__(self, stream: TextIO) -> None:
        """Write to `stream`."""
        self._stream = stream
        self._is_live = stream.isatty()
        self._next_line_s = LINE_EVERY_S

    def show(self, tally: Tally, now_s: float) -> None:
        """Say what the counts are, so long after the start."""
        if not self._is_live:
            if now_s < self._next_line_s:
                return
            self._next_line_s += LINE_EVERY_S
        line = _line(tally, now_s)
        self._stream.write(ERASE_LINE + line if self._is_live else line + "\n")
        self._stream.flush()

    def clear(self) -> None:
        """Leave a clean line."""
        if self._is_live:
            self._stream.write(ERASE_LINE)
            self._stream.flush()


def _line(tally: Tally, now_s: float) -> str:
    totals = tally.totals()
    counts = [f"{outcome.replace('_', ' ')} {totals.outcomes[outcome]:,}" for outcome in Outcome]
    under_way = totals.sent - totals.outcomes.total()
    p99_s = totals.latency.percentile(99)
    last = "" if p99_s is None else f"  p99 {p99_s:.3g} s"
    return f"{now_s:5.0f} s  sent {totals.sent:,}  {'  '.join(counts)}  under way {under_way}{last}"
