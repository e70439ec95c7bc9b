"""Files that a run is given: texts to send, and an earlier run to compare with."""

from pathlib import Path
from typing import Any

import orjson


class InputFileError(Exception):
    """A file is not what it was given for; says where."""


def read_texts(path: Path) -> list[str]:
    """The `text` of every line of a JSONL file.

    Raises OSError, and InputFileError when a line has none, or the file no line.
    """
    texts = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        match _document(line, f"{path}, line {number}"):
            case {"text": str(text)} if text.strip():
                texts.append(text)
            case _:
                raise InputFileError(f"{path}, line {number}: no text in it")
    if not texts:
        raise InputFileError(f"{path} is empty")
    return texts


def read_run(path: Path) -> dict[str, Any]:
    """A run from the file that --json wrote. Raises OSError, InputFileError for any other file."""
    found = _document(path.read_bytes(), str(path))
    if not isinstance(found, dict) or not {"plan", "totals"} <= found.keys():
        raise InputFileError(f"{path} is no report of a load test")
    return found


def _document(content: bytes, place: str) -> Any:
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise InputFileError(f"{place}: {error}") from None
