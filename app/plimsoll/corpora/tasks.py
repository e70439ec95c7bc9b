"""What the use cases of collections take and give: plain records."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from plimsoll.corpora.records import Collection, Document, StoredDocument, Version
from plimsoll.policy.priority import Priority
from plimsoll.telemetry.corpora import SearchMode

AskedMode: TypeAlias = Literal["auto", "dense", "bm25", "hybrid"]


@dataclass(frozen=True)
class CollectionState:
    """A collection, and how much is in it."""

    collection: Collection
    n_documents: int
    versions: list[tuple[Version, int]]  # with how many vectors each has


@dataclass(frozen=True)
class SearchTask:
    """What to look for, and where; `filter`: see filters.py; `priority` as in EmbedTask.

    version: number of the one that is read, alone; None: those that searches of the collection
    read.
    """

    collection: str
    query: str
    top_k: int
    mode: AskedMode = "auto"
    filter: Mapping[str, Any] | None = None
    priority: Priority | None = None
    version: int | None = None


@dataclass(frozen=True)
class DegradedSearch:
    """Why a search was answered by words; retry_after_s: None where waiting would not help."""

    reason: str
    message: str
    retry_after_s: float | None


@dataclass(frozen=True)
class Found:
    """A document and its score, which compares within one answer only."""

    document: StoredDocument
    score: float


@dataclass(frozen=True)
class Answering:
    """A version that took part in an answer by meaning.

    n_documents: those that it answers for, among which the search was.
    """

    version: Version
    n_documents: int


@dataclass(frozen=True)
class SearchResults:
    """Documents, best first. parts: versions that were compared, if any were, the first one first;
    each answers for the documents that those before it have no vector of.
    """

    mode: SearchMode
    results: list[Found]
    parts: list[Answering] = field(default_factory=list)
    degraded: DegradedSearch | None = None
    warnings: list[str] = field(default_factory=list)
    n_tokens: int = 0

    @property
    def fingerprint(self) -> str | None:
        """Of the vectors that were compared, where all were of one space."""
        found = {part.version.space.fingerprint for part in self.parts}
        return found.pop() if len(found) == 1 else None


@dataclass(frozen=True)
class NewDocument:
    """A document of a line, with the vector that came along, float32, if any did.

    n_bytes: the most that it takes in memory.
    """

    line: int
    document: Document
    vector: np.ndarray | None = None
    n_bytes: int = 0


@dataclass(frozen=True)
class LineFailure:
    """Why a line has not become a document. id: as far as it is known."""

    line: int
    id: str | None
    code: str
    message: str


@dataclass
class IngestResult:
    """What became of the lines. errors: of the first that failed, no more than are worth a list."""

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    failed: int = 0
    truncated: int = 0
    n_tokens: int = 0
    errors: list[LineFailure] = field(default_factory=list)
