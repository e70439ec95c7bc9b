"""What a check of `plimsoll doctor` says, and how one that breaks off says it too."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from plimsoll.errors import PlimsollError
from plimsoll.sizes import Size


class State(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """One line of the report; `remedy` says what to do next, empty where all is well."""

    check: str
    state: State
    found: str
    remedy: str = ""


def finding_of(check: str, remedy: str, look: Callable[[], Finding]) -> Finding:
    """What `look` finds; where it is refused, that is the finding, and `remedy` what to do next."""
    try:
        return look()
    except (PlimsollError, OSError) as error:
        return Finding(check, State.FAIL, words_of(error), remedy)


def words_of(error: PlimsollError | OSError) -> str:
    """What an error says, without the system's number."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror}: {error.filename}"
    return str(error)


def nearest(path: Path) -> Path:
    """The path, or the folder above it that is there. Raises OSError below a closed folder."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


def mib(n_bytes: int) -> str:
    """A size in whole MiB, 1M at least."""
    return str(Size(max(1, round(n_bytes / (1 << 20))) << 20))
