"""Watches searches for a while after a cut-over: too many that get no answer take it back.

Owns the counts, which a restart begins anew. Pure; the clock is passed in. A search counts against
the version where its vectors could not be compared with the query, its model could not be used, or
nothing was found although no filter was set and there are documents. Refusals for want of memory
are not the version's fault, and do not count.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

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
    stays: str | None = None

    @property
    def is_too_bad(self) -> bool:
        """Whether the old version should be read again."""
        return (
            self.n_searches >= LEAST_SEARCHES
            and self.n_unanswered > MOST_UNANSWERED_RATIO * self.n_searches
        )


class CutoverWatch:
    """Counts searches of the collections that were cut over lately. clock: seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._watched: dict[str, Watched] = {}  # by collection

    def begin(self, number: int, collection: str, age_s: float = 0.0) -> None:
        """Watch a collection for what is left of its time. age_s: of its cut-over."""
        self._watched[collection] = Watched(number, self._clock() + WATCH_S - age_s)

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
        if is_answered or counted.stays is not None or not counted.is_too_bad:
            return None
        return counted

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
