"""The two classes of texts before the engine: one is waited for, the other is work. Pure."""

from enum import Enum

from plimsoll.policy.runs import SEQUENCE_TOKENS

# What one sequence of the parallelism may take: at most a few short runs. A query, a message or a
# page of text has no more; a list that is to be stored has.
INTERACTIVE_TOKENS = SEQUENCE_TOKENS


class Priority(Enum):
    """Of a request's texts. INTERACTIVE: before others. BULK: what time is left, and a share."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


def priority_of(n_tokens: int) -> Priority:
    """Class of a request of so many tokens that does not ask for one."""
    return Priority.INTERACTIVE if n_tokens <= INTERACTIVE_TOKENS else Priority.BULK
