"""The job file of a migration: TOML that can live in git.

It names things that are configured elsewhere: a collection, a served model, a file of judged
queries, hooks. It defines nothing that is run or connected to.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from plimsoll.cli import FAILED
from plimsoll.nearest import did_you_mean

# Keys that would define what is the operator's alone, by words that are in them.
OPERATORS = (
    "argv", "command", "connection", "credential", "dsn", "endpoint", "environment", "header",
    "host", "key", "password", "plugin", "secret", "token", "uri", "url", "webhook",
)  # fmt: skip
WHOSE = (
    "a job file defines no commands, addresses, keys or connection strings: those are the "
    "operator's configuration (PLIMSOLL_HOOKS and the other settings); name what is there"
)


class JobFileError(click.ClickException):
    """A job file that says what it may not, or nothing that can be done."""

    exit_code = FAILED


@dataclass(frozen=True)
class MigrationJob:
    """What is to be moved where. file: that says so, None where options do."""

    collection: str
    model: str
    hooks: list[str]
    dimensions: int | None = None
    queries: Path | None = None
    bridge: str = "none"
    why: str = ""
    file: Path | None = None
    progressive: bool = False


_KINDS: dict[str, tuple[type, str]] = {
    "collection": (str, "a string"),
    "model": (str, "a string"),
    "dimensions": (int, "a whole number"),
    "queries": (str, "the path of a file, from this one"),
    "hooks": (list, "a list of names"),
    "progressive": (bool, "true or false"),
    "bridge": (str, "one of none, gated and forced"),
    "why": (str, "a string"),
}
_BRIDGES = ("none", "gated", "forced")


def read_job(path: Path) -> MigrationJob:
    """What the file says. Raises JobFileError, with the key that is wrong."""
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise JobFileError(f"{path}: {error.strerror}") from error
    # Beside what is no TOML: numbers that are too long, and lists that are nested too deep.
    except (ValueError, RecursionError) as error:
        raise JobFileError(f"{path} is no TOML: {error}") from error
    for key, value in given.items():
        _check(path, key, value)
    for key in ("collection", "model"):
        if key not in given:
            raise JobFileError(f"{path}: {key} is missing")
    if "queries" in given:
        given["queries"] = path.parent / given["queries"]
        if not _is_file(given["queries"]):
            raise JobFileError(f"{path}: queries: there is no file {given['queries']}")
    return MigrationJob(**{"hooks": [], **given, "file": path})


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def _check(path: Path, key: str, value: Any) -> None:
    if key not in _KINDS:
        if any(word in key.lower() for word in OPERATORS):
            raise JobFileError(f"{path}: {key} is refused: {WHOSE}")
        raise JobFileError(f"{path}: {key} is no key; {did_you_mean(key, _KINDS)}")
    kind, told = _KINDS[key]
    words = value if isinstance(value, list) else [value]
    if any(isinstance(word, dict) for word in words):
        raise JobFileError(f"{path}: {key} is refused: {WHOSE}")
    if not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool):
        raise JobFileError(f"{path}: {key} is {told}")
    if key == "bridge" and value not in _BRIDGES:
        raise JobFileError(f"{path}: {key} is {told}")
    for word in words:
        if isinstance(value, list) and not isinstance(word, str):
            raise JobFileError(f"{path}: {key} is {told}")
        if isinstance(word, str) and key != "why" and "://" in word:
            raise JobFileError(f"{path}: {key} holds an address, and is refused: {WHOSE}")
