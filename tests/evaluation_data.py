"""Evaluation data beside the project, in ../shared/data; a test that needs an absent file skips."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

DATA_DIR = Path(__file__).parents[2] / "shared" / "data"


def evaluation_file(name: str) -> Path:
    """Path of one file. Skips the calling test where it is absent."""
    path = DATA_DIR / name
    if not path.is_file():
        pytest.skip(f"the evaluation data are not beside the project: no {path}")
    return path


def json_lines(name: str) -> list[dict[str, Any]]:
    """Objects of a .jsonl file. Lines end at a line feed alone: texts hold other separators."""
    lines = evaluation_file(name).read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def tsv_rows(name: str) -> list[dict[str, str]]:
    """Rows of a .tsv file by the names in its header."""
    with evaluation_file(name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def text_of(entry: dict[str, Any]) -> str:
    """The text of an entry, which may be given as a unit and how often it is repeated."""
    if "text_repeat" in entry:
        unit, n = entry["text_repeat"]
        return str(unit) * int(n)
    return str(entry["text"])
