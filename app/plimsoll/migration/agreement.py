"""How far searches after a cut-over agree with the old version, and how far they have to. Pure.

What is compared are the documents that both versions find for one query of a client. A verdict has
measured how far they agree on neighbours of documents, and on live searches where some were
compared: half of that is what is asked for after the cut-over. A version that was forced in against
its verdict has to agree at least as far as would keep a verdict from no-go.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

from plimsoll.migration.checks import NO_GO_OVERLAP
from plimsoll.migration.measures import overlap

# Different queries: fewer say nothing, and more would say no more.
LEAST_COMPARED, MOST_COMPARED = 20, 200
# Of what the verdict has measured.
LEAST_KEPT = 0.5
# A mean this many standard errors below the limit is no chance.
STANDARD_ERRORS = 2


@dataclass(frozen=True)
class Agreement:
    """Sums over the queries that were compared. least: a mean below it is too low; 0: none is."""

    least: float = 0.0
    n: int = 0
    total: float = 0.0
    squares: float = 0.0

    @property
    def mean(self) -> float | None:
        """Beyond chance: 1 wholly, 0 as far as random answers do."""
        return self.total / self.n if self.n else None

    @property
    def wants_more(self) -> bool:
        """Whether another query is to be compared."""
        return self.least > 0 and self.n < MOST_COMPARED

    @property
    def is_too_low(self) -> bool:
        """Whether it lies below what it has to be, and not by chance."""
        if self.n < LEAST_COMPARED:
            return False
        mean = self.total / self.n
        variance = max(0.0, self.squares - self.n * mean**2) / (self.n - 1)
        return mean + STANDARD_ERRORS * sqrt(variance / self.n) < self.least

    def with_also(self, value: float) -> "Agreement":
        """The same with one query more."""
        return replace(
            self, n=self.n + 1, total=self.total + value, squares=self.squares + value**2
        )


NOTHING_COMPARED = Agreement()


def beyond_chance(first: Sequence[int], second: Sequence[int], n_documents: int) -> float | None:
    """How far two lists of documents agree; None where any two would, or both are empty.

    n_documents: among which both were looked for.
    """
    depth = max(len(first), len(second))
    if not 0 < depth < n_documents:
        return None
    by_chance = depth / n_documents
    return (overlap(first, second) - by_chance) / (1 - by_chance)


def least_agreement(verdict: Mapping[str, Any] | None) -> float:
    """What searches have to agree on after a cut-over with this verdict; 0: nothing is known."""
    checks = [] if verdict is None else verdict["checks"]
    figures = {check["name"]: check["figures"] for check in checks}
    shadow = figures.get("shadow", {})
    measured = [figures.get("neighbours", {}).get("overlap_at_10")]
    if shadow.get("compared", 0) >= LEAST_COMPARED:
        measured.append(shadow.get("overlap_at_10"))
    expected = min((value for value in measured if value is not None), default=0.0)
    least = max(0.0, LEAST_KEPT * expected)
    is_go = verdict is not None and verdict["decision"] == "go"
    return least if is_go else max(least, NO_GO_OVERLAP)
