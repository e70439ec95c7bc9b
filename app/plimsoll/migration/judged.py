"""Judged queries: what is asked, and which documents answer it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


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
