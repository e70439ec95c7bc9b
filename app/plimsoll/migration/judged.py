"""Judged queries: what is asked, and which documents answer it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plimsoll.corpora.records import Space
from plimsoll.errors import InvalidRequestError


@dataclass(frozen=True)
class JudgedQuery:
    """A query and its relevant documents. grades: by document id, more is better, all above 0.

    old_vector: the query in the old version's space, float32, where no model here embeds into it.
    """

    query: str
    grades: Mapping[str, float]
    old_vector: np.ndarray | None = None

    @classmethod
    def of_json(cls, given: Mapping[str, Any]) -> "JudgedQuery":
        """As the journal keeps it."""
        vector = given.get("old_vector")
        return cls(
            given["query"],
            given["relevant"],
            None if vector is None else np.array(vector, np.float32),
        )


def check_judged(judged: Sequence[Mapping[str, Any]], source: Space) -> None:
    """Raise InvalidRequestError where a vector, as `of_json` takes it, is none of the old space."""
    for place, given in enumerate(judged):
        vector = given.get("old_vector")
        if vector is not None and len(vector) != source.dimensions:
            raise InvalidRequestError(
                f"old_vector of query {place} has {len(vector)} values; those of the old version "
                f"have {source.dimensions}",
                param="queries",
            )


def judged_sha256(judged: Sequence[Mapping[str, Any]]) -> str:
    """Tells whether two lists, as `of_json` takes them, ask the same; in whichever order."""
    lines = sorted(json.dumps(_plain(given), sort_keys=True) for given in judged)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _plain(given: Mapping[str, Any]) -> dict[str, Any]:
    """With one way to write a number, and to leave a vector out."""
    vector = given.get("old_vector")
    return {
        "query": given["query"],
        "relevant": {name: float(grade) for name, grade in given["relevant"].items()},
        "old_vector": None if vector is None else [float(value) for value in vector],
    }
