"""Let requests in one by one, by admission's rule; hold those back that may find room soon.

Owns the waiting requests and tells the executor what it may run. Lives on the event loop.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from app.errors import MemoryPressureError, OverloadError, QueueFullError, TooLargeError
from app.memory.monitor import MemorySample
from app.serving.admission import Admission, Decision, Demand, Outcome, Ticket

MIB = 1 << 20
# More requests than this do not wait for memory: each holds its texts meanwhile.
MOST_WAITING = 256


class AdmissionGate:
    """Owns the futures of waiting requests.

    sample: measures memory now. queue_timeout_s: how long a request waits for room.
    on_change: called after every change of what is admitted.
    """

    def __init__(
        self,
        admission: Admission,
        sample: Callable[[], MemorySample],
        *,
        queue_timeout_s: float,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.admission = admission
        self._sample = sample
        self._queue_timeout_s = queue_timeout_s
        self._on_change = on_change
        self._waiting: dict[asyncio.Future[None], None] = {}  # in the order they came

    @property
    def is_holding_back(self) -> bool:
        """Whether requests wait for room."""
        return bool(self._waiting)

    def decide(self, demand: Demand) -> Decision:
        """What would become of a request now, by fresh numbers."""
        self.observe(self._sample())
        return self.admission.decide(demand)

    def observe(self, sample: MemorySample) -> None:
        """Take a measurement that somebody has made."""
        self.admission.observe(sample.used_bytes, sample.budget_bytes)

    def check_queue(self) -> None:
        """Refuse before any work is done for a request. Raises QueueFullError."""
        decision = self.admission.decide(Demand(n_tokens=1, held_bytes=0))
        if decision.outcome is Outcome.QUEUE_FULL:
            raise _refusal(decision)

    async def enter(self, demand: Demand) -> Ticket:
        """Admit a request, waiting for room where that may help.

        Raises QueueFullError, TooLargeError, or MemoryPressureError after the timeout.
        """
        return self._admit(await self._decide_in_time(demand))

    async def wait_for_room(self, n_bytes: int) -> None:
        """Return once so much could be reserved, or when the timeout has passed."""
        await self._decide_in_time(Demand(0, n_bytes))

    def enter_now(self, demand: Demand) -> Ticket:
        """Admit a request that cannot wait. Raises as `enter` does, at once."""
        return self._admit(self.decide(demand))

    def leave(self, ticket: Ticket) -> None:
        """End a request."""
        self.admission.release(ticket)
        self.wake()

    def reserve(self, n_bytes: int) -> "Reservation":
        """Set memory aside for what is not a request yet, such as a body on its way in.

        Raises QueueFullError, for what it is part of would wait too long, MemoryPressureError or
        TooLargeError.
        """
        self.check_queue()
        return Reservation(self, self.enter_now(Demand(0, n_bytes)))

    def grow(self, ticket: Ticket, total_bytes: int) -> None:
        """Set aside `total_bytes` for a ticket that holds less.

        Raises MemoryPressureError or TooLargeError; the ticket then keeps what it had.
        """
        decision = self.decide(Demand(0, total_bytes - ticket.demand.held_bytes))
        whole = Demand(0, total_bytes)
        if total_bytes > decision.largest_bytes:
            decision = replace(decision, outcome=Outcome.TOO_LARGE, demand=whole)
        if decision.outcome is not Outcome.ADMIT:
            raise _refusal(decision)
        self.admission.renew(ticket, whole)
        self._on_change()

    def wake(self) -> None:
        """Let the waiting look again: something has changed, or time has passed."""
        waiting, self._waiting = self._waiting, {}
        if waiting:
            self.observe(self._sample())
        for future in waiting:
            if not future.done():
                future.set_result(None)
        self._on_change()

    async def _decide_in_time(self, demand: Demand) -> Decision:
        """The decision once it is no longer to wait, or the last one within the timeout."""
        decision = self.decide(demand)
        if decision.outcome is Outcome.WAIT and len(self._waiting) < MOST_WAITING:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._queue_timeout_s):
                    while decision.outcome is Outcome.WAIT:
                        await self._change()
                        decision = self.admission.decide(demand)  # `wake` has measured
        return decision

    async def _change(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[future] = None
        try:
            await future
        finally:
            self._waiting.pop(future, None)

    def _admit(self, decision: Decision) -> Ticket:
        if decision.outcome is not Outcome.ADMIT:
            raise _refusal(decision)
        ticket = self.admission.admit(decision.demand)
        self._on_change()
        return ticket


@dataclass(eq=False)
class Reservation:
    """Memory set aside for what is still growing."""

    gate: AdmissionGate
    ticket: Ticket

    def grow(self, total_bytes: int) -> None:
        """Set aside `total_bytes` in all, never less than before.

        Raises MemoryPressureError or TooLargeError, and keeps what there was.
        """
        if total_bytes > self.ticket.demand.held_bytes:
            self.gate.grow(self.ticket, total_bytes)

    async def wait_to_grow(self, total_bytes: int) -> None:
        """Return once `grow` might succeed, or when the timeout has passed."""
        missing = total_bytes - self.ticket.demand.held_bytes
        if missing > 0:
            await self.gate.wait_for_room(missing)

    def shrink(self, total_bytes: int) -> None:
        """Give back what is not needed any more: keep `total_bytes`."""
        if total_bytes < self.ticket.demand.held_bytes:
            self.gate.admission.renew(self.ticket, Demand(0, total_bytes))
            self.gate.wake()

    def release(self) -> None:
        """Give it back."""
        self.gate.leave(self.ticket)


def _refusal(decision: Decision) -> OverloadError | TooLargeError:
    """What to tell a client whose request is not admitted."""
    needed_mib = decision.demand.peak_bytes / MIB
    if decision.outcome is Outcome.TOO_LARGE:
        return TooLargeError(
            f"this request takes {needed_mib:.0f} MiB at its peak and this server can never give "
            f"more than {decision.largest_bytes / MIB:.0f} MiB; send fewer or shorter texts at a "
            "time, or raise its memory limit"
        )
    if decision.outcome is Outcome.QUEUE_FULL:
        return QueueFullError(
            f"this request would wait {decision.predicted_s:.0f} s; try again later",
            retry_after_s=decision.retry_after_s,
        )
    return MemoryPressureError(
        f"this request takes {needed_mib:.0f} MiB at its peak and "
        f"{decision.headroom_bytes / MIB:.0f} MiB are free below the memory line",
        retry_after_s=decision.retry_after_s,
    )
