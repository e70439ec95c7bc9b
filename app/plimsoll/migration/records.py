"""What the journal of migrations takes and gives: plain records."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from plimsoll.corpora.records import Space
from plimsoll.migration.states import MigrationState

SERVER = "server"
"""Who: what a migration does by itself."""


@dataclass(frozen=True)
class Checkpoint:
    """How far a migration is: what it says has been stored in one transaction with the vectors.

    position: row of the last document of this walk that was looked at. n_skipped: documents that
    changed or went while they were embedded.
    """

    position: int = 0
    n_embedded: int = 0
    n_skipped: int = 0
    n_tokens: int = 0


@dataclass(frozen=True)
class Migration:
    """A collection's move from one version to another.

    n_judged: queries whose answers are known. judged_sha256: of their content. verdict: the last
    one, as JSON.
    """

    id: int
    collection_id: int
    collection: str
    source_version: int
    source: Space
    target_version: int
    target: Space
    state: MigrationState
    checkpoint: Checkpoint
    n_judged: int
    judged_sha256: str
    verdict: Mapping[str, Any] | None
    created_at: str

    @property
    def is_go(self) -> bool:
        """Whether the last verdict speaks for the new version."""
        return self.verdict is not None and self.verdict["decision"] == "go"

    @property
    def idle(self) -> tuple[int, Space]:
        """The version that searches do not read, and its space."""
        if self.state is MigrationState.CUT_OVER:
            return self.source_version, self.source
        return self.target_version, self.target


@dataclass(frozen=True)
class Progress:
    """How far a migration was. second: since 1970, of the beginning of the seconds it holds for."""

    second: int
    n_embedded: int
    n_tokens: int


@dataclass(frozen=True)
class StateChange:
    """A row of the audit: when, who, from, to, why. before: None of the first."""

    changed_at: str
    who: str
    before: MigrationState | None
    after: MigrationState
    why: str


@dataclass(frozen=True)
class Quarantined:
    """A document that has no new vector, and why. has_old_vector: what there is to lose."""

    document_id: str
    reason: str
    n_attempts: int
    has_old_vector: bool
