"""Requests that wait for room below the memory line: who they are, and who is asked first. Pure."""

from plimsoll.policy.admission import Permit
from plimsoll.policy.costs import Demand

# More requests than this do not wait for room: each holds its texts until then.
MOST_WAITING = 256


class WaitingPermits:
    """Owns the permits that wait, and which of them stand for background work."""

    def __init__(self) -> None:
        self._permits: dict[Permit, bool] = {}  # in the order they came; whether each yields

    def __bool__(self) -> bool:
        return bool(self._permits)

    @property
    def in_turn(self) -> list[Permit]:
        """Those that do not yield first, and else in the order they came."""
        return sorted(self._permits, key=self._permits.__getitem__)

    def put(self, permit: Permit, demand: Demand) -> None:
        """Let one wait; it keeps its place where it does already."""
        self._permits.setdefault(permit, demand.yields)

    def take(self, permit: Permit) -> None:
        """Let one wait no more, if it did."""
        self._permits.pop(permit, None)

    def has_place(self, permit: Permit) -> bool:
        """Whether one may wait."""
        return permit in self._permits or len(self._permits) < MOST_WAITING

    def come_before(self, demand: Demand) -> bool:
        """Whether what room there is belongs to one that waits for it, and does not yield."""
        return demand.yields and False in self._permits.values()
