"""Lines of progress on standard error, of runs that take minutes."""

import sys
from collections.abc import Callable
from time import monotonic

Say = Callable[[str], None]


def progress() -> Say:
    """Return what writes a line, with the seconds since this call before it."""
    started = monotonic()

    def say(text: str) -> None:
        print(f"[{monotonic() - started:5.0f} s] {text}", file=sys.stderr, flush=True)

    return say
