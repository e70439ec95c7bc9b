"""Let requests in by the governor's decisions; hold those back that may find room soon.

Owns the futures of waiting requests, and tells the executor what it may run. Lives on the event
loop. What is decided, and in which order, is the governor's matter (policy/governor.py).
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from plimsoll.errors import (
    BreakerOpenError,
    MemoryPressureError,
    OverloadError,
    QueueFullError,
    TooLargeError,
)
from plimsoll.machine.memory import MIB, MemoryUsage
from plimsoll.policy.admission import Permit
from plimsoll.policy.costs import Demand
from plimsoll.policy.decision import Decision, Outcome
from plimsoll.policy.governor import Governor
from plimsoll.policy.priority import Priority
from plimsoll.policy.runs import RunEnded, RunLimits
from plimsoll.serving.clients import current_client


class AdmissionGate:
    """Owns the futures of waiting requests.

    usage: measures memory now. set_limits: takes what the executor may run, after every change.
    queue_timeout_s: how long a request waits for room, all its waits together.
    """

    def __init__(
        self,
        governor: Governor,
        usage: Callable[[], MemoryUsage],
        set_limits: Callable[[RunLimits], None],
        *,
        queue_timeout_s: float,
    ) -> None:
        self.governor = governor
        self._usage = usage
        self._set_limits = set_limits
        self.queue_timeout_s = queue_timeout_s
        # In the order they came, and whether each yields to others.
        self._waiting: dict[asyncio.Future[None], bool] = {}

    def permit(self, *, wait_s: float | None = None) -> "RequestPermit":
        """A permit for one request, which holds nothing yet.

        wait_s: how long it waits for room, all its waits together; None: as long as a client's.
        """
        return RequestPermit(self, wait_s)

    def measure(self) -> None:
        """Take a fresh measurement of memory."""
        usage = self._usage()
        self.governor.measure(usage.used_bytes, usage.budget_bytes)

    def measure_rest_anew(self) -> None:
        """A model has opened: what the server takes at rest is another amount now."""
        self.governor.measure_rest_anew(self._usage().used_bytes)
        self.wake()

    def run_began(self, n_bytes: int) -> None:
        """The engine has begun a run that takes so much."""
        self.governor.run_began(n_bytes)

    def run_takes(self, n_bytes: int) -> None:
        """The run under way takes so much now."""
        self.governor.run_takes(n_bytes)

    def run_ended(self, run: RunEnded) -> None:
        """It has ended."""
        self.governor.run_ended(run)

    def wake(self) -> None:
        """Let the waiting look again, background work last: something changed, or time passed."""
        waiting, self._waiting = self._waiting, {}
        if waiting:
            self.measure()
        for future in sorted(waiting, key=waiting.__getitem__):
            if not future.done():
                future.set_result(None)
        self.update_limits()

    def update_limits(self) -> None:
        """Tell the executor what it may run now."""
        self._set_limits(self.governor.limits())

    async def wait_out(self, permit: Permit, demand: Demand, timeout_s: float) -> Decision:
        """Renew a permit, and while the outcome is to wait, again after every change.

        Returns the last decision within the timeout.
        """
        self.measure()
        decision = self.governor.renew(permit, demand)
        if decision.outcome is Outcome.WAIT:
            try:
                with suppress(TimeoutError):
                    async with asyncio.timeout(timeout_s):
                        while decision.outcome is Outcome.WAIT:
                            await self._change(yields=demand.yields)
                            # `wake` has measured.
                            decision = self.governor.renew(permit, demand)
            finally:
                self.governor.give_up(permit)
        return decision

    async def _change(self, *, yields: bool) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[future] = yields
        try:
            await future
        finally:
            self._waiting.pop(future, None)


class RequestPermit:
    """What one request reserves: it grows from body to ids to demand, and is left once.

    Every method that asks for more raises QueueFullError, BreakerOpenError, MemoryPressureError or
    TooLargeError, and the permit then keeps what it had.
    """

    def __init__(self, gate: AdmissionGate, wait_s: float | None = None) -> None:
        self._gate = gate
        self._governor = gate.governor
        self._permit = Permit()
        self._wait_left_s = gate.queue_timeout_s if wait_s is None else wait_s
        self._comes_back = wait_s != 0.0  # what waits for nothing is given up

    @property
    def kept_bytes(self) -> int:
        """Reserved beside what its texts take: for its body, and what was parsed from it."""
        return self._permit.kept_bytes

    @property
    def held_bytes(self) -> int:
        """What it keeps in all."""
        return self._permit.held_bytes

    def enter(
        self, *, asks_breaker: bool, priority: Priority = Priority.INTERACTIVE, size: int = 0
    ) -> None:
        """Ask for a place in the queue of its class, and the breaker, before any work is done.

        size: of its body or texts, as the governor's `enter` has it.
        """
        if self._permit.client is None:
            self._permit.client = current_client()
        decision = self._governor.enter(
            self._permit,
            asks_breaker=asks_breaker,
            priority=priority,
            size=size if self._comes_back else 0,
        )
        self._admit(decision)

    async def renew(self, demand: Demand) -> None:
        """Stand for `demand` instead of what it stood for, waiting for room where that may help."""
        self._admit(await self._wait_out(self._permit, demand))

    def renew_now(self, demand: Demand) -> None:
        """Likewise, at once or not at all."""
        self._gate.measure()
        self._admit(self._governor.renew(self._permit, demand, may_wait=False))

    def keep(self, n_bytes: int, *, yields: bool = False) -> None:
        """Hold so many bytes beside what its texts take, never less than before.

        yields: for background work, which leaves room to others.
        """
        if n_bytes > self._permit.kept_bytes:
            self._gate.measure()
            self._admit(self._governor.keep(self._permit, n_bytes, yields=yields))

    async def wait_to_keep(self, n_bytes: int, *, yields: bool = False) -> None:
        """Return once `keep` might succeed, or when the timeout has passed."""
        missing_bytes = n_bytes - self._permit.kept_bytes
        if missing_bytes > 0:
            trial = Permit()
            await self._wait_out(trial, Demand(0, missing_bytes, yields=yields))
            self._governor.leave(trial)

    def explain(self, demand: Demand, *, asks_breaker: bool) -> Decision:
        """What would become of it now, by fresh numbers; changes nothing."""
        self._gate.measure()
        return self._governor.explain(demand, self._permit, asks_breaker=asks_breaker)

    def check_size(self, demand: Demand) -> None:
        """Raise TooLargeError where even an idle server could not give so much."""
        decision = self._governor.explain(demand, self._permit, asks_breaker=False)
        if decision.outcome is Outcome.TOO_LARGE:
            raise _refusal(decision)

    def shrink(self, n_bytes: int) -> None:
        """Hold no more than so many bytes beside what its texts take."""
        self._governor.shrink(self._permit, n_bytes)
        self._gate.wake()

    def settle(self) -> None:
        """Keep what its demand holds; the next demand comes on top of it."""
        self._governor.settle(self._permit)

    def note_done(self, n_tokens: int) -> None:
        """So many of its tokens have run."""
        self._governor.admission.note_done(self._permit, n_tokens)

    def succeeded(self) -> None:
        """Its vectors are computed."""
        self._governor.succeeded(self._permit)
        self._gate.update_limits()

    def failed(self, cause: Exception | None = None) -> None:
        """It found no memory, however small the run. cause: which others may share with it."""
        self._governor.failed(self._permit, cause)
        self._gate.update_limits()

    def drop(self) -> None:
        """End its demand; its body stays held."""
        if self._governor.drop(self._permit):
            self._gate.wake()

    def leave(self) -> None:
        """End the request."""
        if self._governor.leave(self._permit):
            self._gate.wake()

    async def _wait_out(self, permit: Permit, demand: Demand) -> Decision:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        try:
            return await self._gate.wait_out(permit, demand, self._wait_left_s)
        finally:
            self._wait_left_s = max(0.0, self._wait_left_s - (loop.time() - began_s))

    def _admit(self, decision: Decision) -> None:
        if decision.outcome is not Outcome.ADMIT:
            raise _refusal(decision)
        self._gate.update_limits()


def _refusal(decision: Decision) -> OverloadError | TooLargeError:
    """What to tell a client whose request is not admitted."""
    match decision.outcome:
        case Outcome.TOO_LARGE:
            return TooLargeError(
                f"this request takes {_size(decision.peak_bytes)} at its peak and this server can "
                f"never give more than {_size(decision.largest_bytes)}; send fewer or shorter "
                "texts at a time, or raise its memory limit"
            )
        case Outcome.QUEUE_FULL:
            return QueueFullError(_queue_full(decision), retry_after_s=decision.retry_after_s)
        case Outcome.BREAKER_OPEN:
            return BreakerOpenError(
                "memory failed or ran high", retry_after_s=decision.retry_after_s
            )
        case _:
            return MemoryPressureError(
                f"this request takes {_size(decision.peak_bytes)} at its peak and "
                f"{_size(decision.headroom_bytes)} are free below the memory line",
                retry_after_s=decision.retry_after_s,
            )


def _queue_full(decision: Decision) -> str:
    told = "more texts wait before this request than run in good time"
    if decision.room_s <= decision.retry_after_s:
        return told
    told = f"{told}, so that its turn comes in {decision.room_s:.0f} s"
    return f"{told}, and its place is kept" if decision.keeps_place else told


def _size(n_bytes: int) -> str:
    """Megabytes, with as many places as it takes to see that there are some."""
    mib = n_bytes / MIB
    return f"{mib:.0f} MiB" if mib >= 10 else f"{mib:.2g} MiB"
