"""Write the Python packages of a Docker image, with the licence of each, at the end of NOTICE.

Which ones: requirements.lock and locks/*.lock. Their licences are what their own metadata say, read
from the packages that ./scripts/check and ./scripts/test install. Prints NOTICE; `python -m
scripts.notice --write` writes it.
"""

import re
import sys
from importlib.metadata import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOTICE = ROOT / "NOTICE"
HEADING = "\nPython packages of a Docker image, and the licences that they name\n"
MOST_CHARACTERS = 60  # of a licence's name; some packages put its whole text there
CLASSIFIER = "License :: "
# Packages whose metadata name no licence; as the file LICENSE in them has it.
LOOKED_UP = {"py-rust-stemmers": "MIT"}


def locked() -> list[str]:
    """The names of all packages that an image may hold."""
    locks = (ROOT / "requirements.lock", *sorted((ROOT / "locks").glob("*.lock")))
    texts = [lock.read_text(encoding="utf-8") for lock in locks]
    return sorted({name for text in texts for name in re.findall(r"^([a-z][\w.-]*)==", text, re.M)})


def licence_of(name: str) -> str:
    """The licence's expression or name. Raises KeyError where a package names none."""
    package = metadata(name).json
    for field in ("license_expression", "license"):
        told = str(package.get(field, ""))
        if told and len(told) <= MOST_CHARACTERS and "\n" not in told:
            return told
    lines = [line for line in package.get("classifier", []) if line.startswith(CLASSIFIER)]
    return ", ".join(line.rpartition(" :: ")[2] for line in lines) or LOOKED_UP[name]


def notice() -> str:
    """All of NOTICE."""
    written = NOTICE.read_text(encoding="utf-8").partition(HEADING)[0]
    lines = [f"    {name}: {licence_of(name)}" for name in locked()]
    return written + HEADING + "\n".join(lines) + "\n"


def main() -> None:
    """Print it, or write it."""
    if "--write" in sys.argv[1:]:
        NOTICE.write_text(notice(), encoding="utf-8")
    else:
        sys.stdout.write(notice())


if __name__ == "__main__":
    main()
