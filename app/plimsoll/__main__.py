"""Where the command line begins: `plimsoll`, or `python -m plimsoll`."""

import os
import sys
from pathlib import Path

from plimsoll.cli import INTERRUPTED


def main() -> None:
    """Run the command that the arguments name; Ctrl-C ends it without a traceback."""
    if sys.stderr is None:  # closed by its caller, who then does not want to read it
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for good
    try:
        # Takes a second on a busy machine, in which Ctrl-C may come too.
        from plimsoll.cli.commands import main as command_line

        command_line(prog_name="plimsoll")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
