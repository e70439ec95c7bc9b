"""The two classes of texts before the engine: one is waited for, the other is work. Pure.

The queue of texts lets them run by these rules (text_queue.py), and admission foretells by the same
ones how long a request will wait (admission.py).
"""

from dataclasses import dataclass
from enum import Enum

from plimsoll.policy.lines import SEQUENCE_TOKENS

# What one sequence of the parallelism may take: at most a few short runs. A query, a message or a
# page of text has no more; a list that is to be stored has.
INTERACTIVE_TOKENS = SEQUENCE_TOKENS
# One line of text: a query. It has its turn soon whatever waits, since requests take turns.
QUERY_TOKENS = 32
# Of the tokens that run while texts of both classes wait.
BULK_SHARE = 0.25


class Priority(Enum):
    """Of a request's texts. INTERACTIVE: before others. BULK: what time is left, and a share."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


def priority_of(n_tokens: int, asked: Priority | None = None) -> Priority:
    """Class of a request of so many tokens: the one that it asks for, or else by its size."""
    return asked or (Priority.INTERACTIVE if n_tokens <= INTERACTIVE_TOKENS else Priority.BULK)


def is_query(priority: Priority, n_tokens: int) -> bool:
    """Whether a request is one line of text that is waited for."""
    return priority is Priority.INTERACTIVE and n_tokens <= QUERY_TOKENS


@dataclass(frozen=True, slots=True)
class WaitingTokens:
    """Tokens that wait for the engine, by class."""

    interactive: int = 0
    bulk: int = 0

    @property
    def total(self) -> int:
        """Of both classes."""
        return self.interactive + self.bulk

    def plus(self, others: "WaitingTokens") -> "WaitingTokens":
        """With others that wait too."""
        return WaitingTokens(self.interactive + others.interactive, self.bulk + others.bulk)

    def before(self, priority: Priority, n_tokens: int, *, layer_tokens: int) -> int:
        """How many of them run before the last of `n_tokens` that come now, at most.

        Those of its own class, and of the other what its share lets pass meanwhile. A layer of bulk
        may be under way or due besides, that takes as long as `layer_tokens` through all layers.
        """
        if priority is Priority.INTERACTIVE:
            passing = (self.interactive + n_tokens) * BULK_SHARE / (1 - BULK_SHARE)
            return self.interactive + min(self.bulk, round(passing) + layer_tokens)
        passing = (self.bulk + n_tokens) * (1 - BULK_SHARE) / BULK_SHARE
        return self.bulk + min(self.interactive, round(passing))
