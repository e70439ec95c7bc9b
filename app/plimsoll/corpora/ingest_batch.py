"""Documents on their way into a collection: as many as are embedded and stored together."""

from dataclasses import dataclass, field

from plimsoll.corpora.batches import FoundVectors
from plimsoll.corpora.tasks import LineFailure, NewDocument
from plimsoll.policy.costs import INGEST_BATCH_BYTES

BATCH_DOCUMENTS = 128
BATCH_CHARACTERS = 512 << 10


@dataclass
class IngestBatch:
    """Documents under way, each id once, and what has become of them so far.

    vector_space: fingerprint of the vectors that came along.
    """

    vector_space: str | None
    documents: dict[str, NewDocument] = field(default_factory=dict)  # by id
    found: FoundVectors = field(default_factory=dict)
    failures: list[LineFailure] = field(default_factory=list)
    truncated: int = 0
    n_tokens: int = 0
    n_characters: int = 0
    n_bytes: int = 0

    @property
    def news(self) -> list[NewDocument]:
        """Those that have not failed."""
        return list(self.documents.values())

    @property
    def is_full(self) -> bool:
        """Whether it is to be stored before another line is read."""
        return (
            len(self.documents) >= BATCH_DOCUMENTS
            or self.n_characters >= BATCH_CHARACTERS
            or self.n_bytes >= INGEST_BATCH_BYTES
        )

    def add(self, new: NewDocument) -> None:
        """Take in a document whose id is not there: the same one twice would need an order."""
        self.documents[new.document.id] = new
        self.n_characters += len(new.document.text)
        self.n_bytes += new.n_bytes

    def fail(self, new: NewDocument, code: str, message: str) -> None:
        """Take a document out."""
        del self.documents[new.document.id]
        self.failures.append(LineFailure(new.line, new.document.id, code, message))
