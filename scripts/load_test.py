"""`plimsoll bench`, for a checkout."""

import sys

from plimsoll.cli.commands import main

if __name__ == "__main__":
    main(["bench", *sys.argv[1:]], prog_name="plimsoll")
