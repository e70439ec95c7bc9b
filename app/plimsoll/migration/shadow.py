"""What live searches say of a new version before cut-over: sums over comparisons, kept in SQLite.

Functions over a connection that is in a transaction, which the caller holds. No query and no
document is kept.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from plimsoll.migration.measures import DEPTH, overlap, rank_biased_overlap
from plimsoll.migration.verdict import Check


@dataclass(frozen=True)
class Comparison:
    """One search, answered by both versions. old, new: rows, best first; seconds: of each."""

    old: Sequence[int]
    new: Sequence[int]
    old_s: float
    new_s: float


@dataclass(frozen=True)
class Shadow:
    """What was compared so far. share: of live searches, 0 where it has ended.

    n_both: searches in which both versions found something; overlap, agreement: sums over them.
    old_s, new_s: sums over all n_compared. n_failed: the new version gave no answer, the last time
    for this reason, a code of errors.py.
    """

    share: float
    n_compared: int = 0
    n_both: int = 0
    overlap: float = 0.0
    least_overlap: float = 1.0
    agreement: float = 0.0
    old_s: float = 0.0
    new_s: float = 0.0
    n_old_empty: int = 0
    n_new_empty: int = 0
    n_failed: int = 0
    last_failure: str | None = None

    @property
    def mean_overlap(self) -> float | None:
        """Of the first ten, or as many as were asked for."""
        return self.overlap / self.n_both if self.n_both else None

    @property
    def mean_agreement(self) -> float | None:
        """Rank-biased overlap."""
        return self.agreement / self.n_both if self.n_both else None

    @property
    def old_mean_ms(self) -> float | None:
        """Of an answer of the old version, which a client waited for."""
        return self.old_s / self.n_compared * 1000 if self.n_compared else None

    @property
    def new_mean_ms(self) -> float | None:
        """Of an answer of the new one, which stood back for those of clients."""
        return self.new_s / self.n_compared * 1000 if self.n_compared else None


_COLUMNS = """share, n_compared, n_both, overlap, least_overlap, agreement, old_seconds,
    new_seconds, n_old_empty, n_new_empty, n_failed, last_failure"""


def find(connection: sqlite3.Connection, migration: int) -> Shadow | None:
    """What was compared; None where no share was ever set."""
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM migration_shadow WHERE migration = ?", (migration,)
    ).fetchone()
    return None if row is None else Shadow(*row)


def share_of(connection: sqlite3.Connection, migration: int) -> float:
    """Of live searches that are to be compared."""
    found = find(connection, migration)
    return 0.0 if found is None else found.share


def set_share(connection: sqlite3.Connection, migration: int, share: float) -> None:
    """Compare that share from now on; what was compared before counts on."""
    connection.execute(
        """INSERT INTO migration_shadow (migration, share) VALUES (?1, ?2)
        ON CONFLICT DO UPDATE SET share = ?2""",
        (migration, share),
    )


def end(connection: sqlite3.Connection, migration: int) -> None:
    """Compare no more, where any searches were; what was compared stays told."""
    connection.execute("UPDATE migration_shadow SET share = 0 WHERE migration = ?", (migration,))


def add(connection: sqlite3.Connection, migration: int, seen: Comparison) -> None:
    """Count a search that both have answered."""
    old, new = seen.old[:DEPTH], seen.new[:DEPTH]
    has_both = bool(old and new)
    shared = overlap(old, new) if has_both else 0.0
    connection.execute(
        """UPDATE migration_shadow SET n_compared = n_compared + 1, n_both = n_both + ?2,
            overlap = overlap + ?3, least_overlap = min(least_overlap, ?4),
            agreement = agreement + ?5, old_seconds = old_seconds + ?6,
            new_seconds = new_seconds + ?7, n_old_empty = n_old_empty + ?8,
            n_new_empty = n_new_empty + ?9
        WHERE migration = ?1""",
        (
            migration,
            has_both,
            shared,
            shared if has_both else 1.0,
            rank_biased_overlap(old, new) if has_both else 0.0,
            seen.old_s,
            seen.new_s,
            not old,
            not new,
        ),
    )


def add_failure(connection: sqlite3.Connection, migration: int, code: str) -> None:
    """Count a search that the new version could not answer."""
    connection.execute(
        """UPDATE migration_shadow SET n_failed = n_failed + 1, last_failure = ?
        WHERE migration = ?""",
        (code, migration),
    )


def check_of(seen: Shadow) -> Check:
    """What it says in a verdict: told, since live queries have no known answers."""
    figures = {
        "compared": seen.n_compared,
        "overlap_at_10": seen.mean_overlap,
        "least_overlap_at_10": seen.least_overlap if seen.n_both else None,
        "rank_agreement": seen.mean_agreement,
        "old_mean_ms": seen.old_mean_ms,
        "new_mean_ms": seen.new_mean_ms,
        "old_empty": seen.n_old_empty,
        "new_empty": seen.n_new_empty,
        "failed": seen.n_failed,
    }
    return Check("shadow", "noted", told(seen), figures, warns=bool(seen.n_failed))


def told(seen: Shadow) -> str:
    """In words."""
    words = f"{seen.n_compared} live searches compared"
    if seen.n_both:
        words += (
            f": both versions share {seen.mean_overlap:.0%} of the first 10 in the mean, "
            f"{seen.least_overlap:.0%} at least, rank agreement {seen.mean_agreement:.2f}"
        )
    if seen.n_old_empty or seen.n_new_empty:
        words += f"; the old found nothing in {seen.n_old_empty}, the new in {seen.n_new_empty}"
    if seen.n_failed:
        words += f"; {seen.n_failed} failed in the new version, the last with {seen.last_failure}"
    return words
