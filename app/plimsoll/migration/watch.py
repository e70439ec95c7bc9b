"""Watches searches for a while after a cut-over: what is too bad is taken back.

Too many that get no answer are, and so are answers that have too little to do with those of the old
version. Owns the counts, which a restart begins anew. Pure; the clock is passed in. A search counts
as unanswered where its vectors could not be compared with the query, its model could not be used,
or nothing was found although no filter was set and there are documents. Refusals for want of memory
are not the version's fault, and do not count.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from plimsoll.migration.agreement import NOTHING_COMPARED, Agreement

WATCH_S = 600.0
LEAST_SEARCHES = 20
MOST_UNANSWERED_RATIO = 0.05


@dataclass(frozen=True)
class Watched:
    """What was seen since a cut-over. stays: why it is not taken back although it is too bad."""

    number: int
    until_s: float
    n_searches: int = 0
    n_unanswered: int = 0
    agreement: Agreement = NOTHING_COMPARED
    stays: str | None = None

    @property
    def fault(self) -> str | None:
        """Why the old version should be read again; None where it should not."""
        most_unanswered = MOST_UNANSWERED_RATIO * self.n_searches
        if self.n_searches >= LEAST_SEARCHES and self.n_unanswered > most_unanswered:
            return f"{self.n_unanswered} of {self.n_searches} searches after cut-over had no answer"
        if self.agreement.is_too_low:
            return (
                f"{self.agreement.n} searches after cut-over agree with the old version on "
                f"{self.agreement.mean:.1%} of what they find, beyond chance: less than "
                f"{self.agreement.least:.1%}"
            )
        return None


class CutoverWatch:
    """Counts searches of the collections that were cut over lately. clock: seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._watched: dict[str, Watched] = {}  # by collection

    def begin(
        self, number: int, collection: str, age_s: float = 0.0, least_agreement: float = 0.0
    ) -> None:
        """Watch a collection for what is left of its time.

        age_s: of its cut-over. least_agreement: with the old version; 0: none is asked for.
        """
        until_s = self._clock() + WATCH_S - age_s
        self._watched[collection] = Watched(number, until_s, agreement=Agreement(least_agreement))

    def end(self, number: int) -> None:
        """It is not cut over any more, or there is no way back."""
        self._watched = {
            collection: watched
            for collection, watched in self._watched.items()
            if watched.number != number
        }

    def searched(self, collection: str, is_answered: bool) -> Watched | None:
        """Count a search; returns what was seen where it had no answer and was one too many.

        So again for each further one, until it is taken back or stays.
        """
        watched = self._watched.get(collection)
        if watched is None or self._has_ended(watched):
            return None
        counted = replace(
            watched,
            n_searches=watched.n_searches + 1,
            n_unanswered=watched.n_unanswered + (not is_answered),
        )
        self._watched[collection] = counted
        return None if is_answered else _faulty(counted)

    def compares(self, collection: str) -> int | None:
        """The migration whose searches are to be compared with the old version, if any are."""
        watched = self._watched.get(collection)
        if watched is None or self._has_ended(watched) or watched.stays is not None:
            return None
        return watched.number if watched.agreement.wants_more else None

    def compared(self, collection: str, number: int, agreement: float) -> Watched | None:
        """Count how far a search agrees; returns what was seen where all agree too little."""
        watched = self._watched.get(collection)
        if watched is None or self._has_ended(watched) or watched.number != number:
            return None
        counted = replace(watched, agreement=watched.agreement.with_also(agreement))
        self._watched[collection] = counted
        return _faulty(counted)

    def stay(self, number: int, why: str) -> None:
        """It is not to be taken back, since that would be no better."""
        self._watched = {
            collection: replace(watched, stays=why) if watched.number == number else watched
            for collection, watched in self._watched.items()
        }

    def of(self, number: int) -> tuple[Watched, float] | None:
        """What was seen of a migration, and for how many seconds it is still watched."""
        for watched in self._watched.values():
            if watched.number == number and not self._has_ended(watched):
                return watched, watched.until_s - self._clock()
        return None

    def _has_ended(self, watched: Watched) -> bool:
        return self._clock() >= watched.until_s


def _faulty(watched: Watched) -> Watched | None:
    """What is to be taken back."""
    return watched if watched.stays is None and watched.fault is not None else None
