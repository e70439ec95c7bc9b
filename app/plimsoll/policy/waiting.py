"""Requests that wait for room below the memory line: who they are, and who is asked first. Pure."""

from plimsoll.policy.admission import Permit
from plimsoll.policy.costs import Demand
from plimsoll.policy.priority import Priority

# More requests than this do not wait for room: each holds its texts until then.
MOST_WAITING = 256


class WaitingPermits:
    """Owns the permits that wait, each with the class of what it waits for."""

    def __init__(self) -> None:
        self._permits: dict[Permit, Priority] = {}  # in the order they came

    def __bool__(self) -> bool:
        return bool(self._permits)

    @property
    def in_turn(self) -> list[Permit]:
        """Interactive ones first, each class in the order they came."""
        return sorted(self._permits, key=lambda permit: self._permits[permit] is Priority.BULK)

    def put(self, permit: Permit, priority: Priority) -> None:
        """Let one wait; it keeps its place where it does already."""
        self._permits.setdefault(permit, priority)

    def take(self, permit: Permit) -> None:
        """Let one wait no more, if it did."""
        self._permits.pop(permit, None)

    def has_place(self, permit: Permit) -> bool:
        """Whether one may wait."""
        return permit in self._permits or len(self._permits) < MOST_WAITING

    def come_before(self, demand: Demand) -> bool:
        """Whether what room there is belongs to an interactive request that waits for it."""
        return demand.priority is Priority.BULK and Priority.INTERACTIVE in self._permits.values()
