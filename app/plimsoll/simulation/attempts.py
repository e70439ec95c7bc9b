"""The attempts of clients who come back when they are refused."""

from random import Random

from plimsoll.policy.return_times import told_s
from plimsoll.simulation.report import Fate, RequestRecord
from plimsoll.simulation.request import SimulatedRequest


class Attempts:
    """Owns the latest attempt of each request."""

    def __init__(self) -> None:
        self._latest: dict[int, SimulatedRequest] = {}  # by the order of their first attempts
        self._numbers: dict[SimulatedRequest, int] = {}
        self._chance = Random(0).random  # noqa: S311 -- the same at every replay

    def begin(self, request: SimulatedRequest) -> None:
        """Note the first attempt of a request."""
        self._note(request, len(self._latest))

    def next_of(
        self, request: SimulatedRequest, retry_after_s: float
    ) -> tuple[SimulatedRequest, float] | None:
        """Return the attempt after one that was refused, and its seconds from now; None: no more.

        retry_after_s: before it is told, in whole seconds and spread.
        """
        if request.n_attempts > request.arrival.n_retries:
            return None
        again = request.again()
        self._note(again, self._numbers.pop(request))
        return again, told_s(retry_after_s, self._chance())

    def records(self, now_s: float) -> list[RequestRecord]:
        """Say what became of each request; what has no end has none at the end."""
        for request in self._latest.values():
            if not request.has_ended:
                request.end(Fate.UNFINISHED, None, now_s)
        return [request.record for request in self._latest.values() if request.record]

    def _note(self, request: SimulatedRequest, number: int) -> None:
        self._latest[number] = request
        self._numbers[request] = number
