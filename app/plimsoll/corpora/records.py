"""What the store takes and gives: plain records."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any

COLLECTION_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
FOREIGN_PREFIX = "foreign:"
MOST_DIMENSIONS = 4096
"""Values of a vector, of a foreign space as of a model."""
BRIDGE_PREFIX = "bridge:"


def text_sha256(text: str) -> bytes:
    """What a text is known by."""
    return hashlib.sha256(text.encode()).digest()


class VersionState(Enum):
    """Whether a version may be searched alone."""

    BUILDING = "building"  # documents without a vector are still to be embedded
    COMPLETE = "complete"


@dataclass(frozen=True)
class Space:
    """A vector space: vectors are compared only where all of it is equal.

    fingerprint: as /embed gives it; `foreign:NAME` for a space that no model here embeds into;
    `bridge:FINGERPRINT:DIGEST` for vectors that a map has brought near the space FINGERPRINT.
    model: name of the served model that embeds documents into it, None where none does.
    """

    fingerprint: str
    dimensions: int
    model: str | None = None

    @classmethod
    def foreign(cls, name: str, dimensions: int) -> "Space":
        """A space known by name alone."""
        return cls(FOREIGN_PREFIX + name, dimensions)

    def bridged(self, digest: str) -> "Space":
        """The space of vectors that a map of this digest brings near this one."""
        return Space(f"{BRIDGE_PREFIX}{self.fingerprint}:{digest}", self.dimensions)

    @property
    def is_foreign(self) -> bool:
        """Whether no model here embeds into it."""
        return self.model is None

    @property
    def is_bridge(self) -> bool:
        """Whether a map has made its vectors."""
        return self.fingerprint.startswith(BRIDGE_PREFIX)

    @property
    def query_fingerprint(self) -> str:
        """Of the vectors that its own are compared with: of a bridge, the space it leads to."""
        if not self.is_bridge:
            return self.fingerprint
        return self.fingerprint.removeprefix(BRIDGE_PREFIX).rpartition(":")[0]


@dataclass(frozen=True)
class Version:
    """Vectors of a collection's documents in one space. takes_writes: new documents get one."""

    id: int
    collection_id: int
    space: Space
    state: VersionState
    takes_writes: bool


@dataclass(frozen=True)
class Collection:
    """Documents under a name; `active` is the version that searches read.

    is_linked: they mirror what is elsewhere, and only plimsoll.links changes them.
    ahead: versions that searches read before the active one, each for the documents that have a
    vector of it and of none before it.
    """

    id: int
    name: str
    active: Version
    created_at: str
    is_linked: bool = False
    ahead: tuple[Version, ...] = ()

    @property
    def parts(self) -> tuple[Version, ...]:
        """All versions that searches read, the first one first; the last is the active one."""
        return (*self.ahead, self.active)


@dataclass(frozen=True)
class Document:
    """A document as a client gives it."""

    id: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def text_sha256(self) -> bytes:
        """Computed once: a batch is looked at before, and again in, its transaction."""
        return text_sha256(self.text)


@dataclass(frozen=True)
class StoredDocument:
    """A document in its row: a whole number that stays its own and grows with each new one.

    metadata_json: as it is stored; parsed it may take thirty times as much.
    """

    row: int
    id: str
    text: str
    metadata_json: str
    text_sha256: bytes
