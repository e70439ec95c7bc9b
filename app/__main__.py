"""`python -m app` is `plimsoll`."""

from app.cli import main

main()
