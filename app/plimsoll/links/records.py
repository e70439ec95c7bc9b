"""What an outside home of documents takes and gives: plain records."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class OutsideRow:
    """A row as it is outside. text: None where there is none, or more than a document may have.

    vector: float32 (dimensions,), None where there is none of the right size. is_stale: whether it
    is of an earlier text, as the home has noted since the row was last looked at; None where
    nothing was noted.
    """

    id: str
    text: str | None
    vector: np.ndarray | None
    is_stale: bool | None = None


@dataclass(frozen=True)
class StaleVector:
    """A vector outside that is of an earlier text of its row.

    text_sha256: of that text; None where it was never seen.
    """

    vector: np.ndarray
    text_sha256: bytes | None


@dataclass(frozen=True)
class OutsideRows:
    """Rows, each id once.

    active: fingerprint of the space that their vectors are of; None before it is noted. position:
    what `page` takes to go on behind the last of them; None where nothing is behind it. left: ids
    that were asked for and not looked at, for want of room. rounding: up to which part of its
    largest value a vector may come back otherwise than it was stored.
    """

    rows: Sequence[OutsideRow]
    active: str | None
    position: str | None = None
    left: Sequence[str] = ()
    rounding: float = 0.0


@dataclass(frozen=True)
class Changes:
    """Ids of rows that came, changed or went, each once. marks: what `forget` knows them by.

    is_everything: any row may have changed, as when a table was emptied at once.
    """

    ids: Sequence[str] = ()
    marks: Sequence[int] = ()
    is_everything: bool = False


@dataclass(frozen=True)
class OutgoingRow:
    """A vector that goes out, float32 (dimensions,), and the text that it is of."""

    id: str
    text: str
    text_sha256: bytes  # of the text in UTF-8
    vector: np.ndarray


@dataclass(frozen=True)
class Pushed:
    """What became of vectors that went out, by id.

    stored: outside has confirmed them. differing: the row is gone or has another text, so that the
    vector is none of its. All others are to be tried again: someone else holds them.
    """

    stored: frozenset[str]
    differing: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Finding:
    """Something to know before a link is used. blocks: it cannot be used like this."""

    message: str
    blocks: bool = False


@dataclass(frozen=True)
class Survey:
    """What is outside, as it was found without a change.

    where: place in words, without a secret. n_without_text and n_without_vector: rows that become
    no document, or one without an old vector. dimensions: of the vectors; None where there are
    none. active: as in OutsideRows. n_changes: changes that are noted and not taken in yet.
    """

    where: str
    n_rows: int
    n_without_text: int
    n_without_vector: int
    dimensions: int | None
    active: str | None
    n_changes: int
    findings: Sequence[Finding] = ()

    def expecting(self, dimensions: int | None) -> "Survey":
        """This, and what is in the way where the file of links says another size.

        Once a space is noted, a cut-over may have changed the size since the file was written.
        """
        if self.active is not None or None in (dimensions, self.dimensions):
            return self
        if self.dimensions == dimensions:
            return self
        wrong = Finding(
            f"the vectors have {self.dimensions} values, and the file of links says dimensions = "
            f"{dimensions}: correct it there, and start the server again",
            blocks=True,
        )
        return replace(self, findings=[*self.findings, wrong])
