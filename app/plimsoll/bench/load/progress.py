"""How far a run has come, on standard error."""

from typing import TextIO

from plimsoll.bench.load.replies import Outcome
from plimsoll.bench.load.tally import Tally

LINE_EVERY_S = 5.0
ERASE_LINE = "\r\x1b[K"
LINE_COLUMNS = 79  # one less than a terminal has, so that the cursor stays on the line
# What a reader must not miss stands first.
ORDER = (
    *(Outcome.FAILED, Outcome.DENSE, Outcome.SPARSE, Outcome.REFUSED),
    *(Outcome.REJECTED, Outcome.HUNG_UP),
)


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
    """Outcomes that have happened, as many as fit into a terminal's line."""
    totals = tally.totals()
    p99_s = totals.latency.percentile(99)
    parts = [f"{now_s:5.0f} s", f"{totals.sent:,} sent"]
    if p99_s is not None:
        parts.append(f"p99 {p99_s:.3g} s")
    happened = [outcome for outcome in ORDER if totals.outcomes[outcome]]
    parts += [f"{totals.outcomes[outcome]:,} {outcome.replace('_', ' ')}" for outcome in happened]
    parts.append(f"{totals.sent - totals.outcomes.total():,} under way")
    while len(line := "  ".join(parts)) > LINE_COLUMNS:
        parts.pop()
    return line
