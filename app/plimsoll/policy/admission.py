"""The books of what admitted requests reserve: memory, and places in the queue (backlog.py).

Pure: no I/O, no thread, no waiting; measurements and the clock come in. What becomes of a request
is for the governor to decide, from the numbers here. What stands against the line:

    floor      the server at rest, and what it holds that no admitted request accounts for
               (floor.py)
    held       what each admitted request keeps while it lives: its body, ids, vectors, reply
    run        the largest run of the engine among them, or the one under way, which may join
               many texts; runs follow each other, so one counts
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from plimsoll.policy.backlog import Backlog
from plimsoll.policy.breaker import Admittance
from plimsoll.policy.costs import NOTHING, Demand
from plimsoll.policy.floor import SETTLED_AFTER_S, MemoryFloor
from plimsoll.policy.lines import (
    FALLBACK_RATIO,
    LEFT_BEHIND_RATIO,
    OPEN_RATIO,
    admission_ratio,
)
from plimsoll.policy.return_times import Place


@dataclass(eq=False)
class Permit:
    """What one request reserves, from its body to the end of its reply. Owned by the governor.

    demand: of its texts, once they are known. kept_bytes: of its body, and of results that it has
        already: they stay until its reply has been sent.
    admittance: what the breaker has said of it; None where it was not asked.
    size: of its body or its texts, by which it is known where it comes back; 0: not known.
    place: that it has come back to. client: whose it is; None: of work for no client.
    """

    demand: Demand = NOTHING
    kept_bytes: int = 0
    tokens_left: int = 0
    admittance: Admittance | None = None
    size: int = 0
    place: Place | None = None
    client: object = None

    @property
    def held_bytes(self) -> int:
        """What it keeps in all."""
        return self.kept_bytes + self.demand.held_bytes

    @property
    def waiting_tokens(self) -> int:
        """Tokens of it that a request which comes now has to wait for."""
        window = self.demand.waiting_tokens
        return self.tokens_left if window is None else min(window, self.tokens_left)


class Admission:
    """Owns the permits of admitted requests, the backlog and the floor.

    queue_s: work that may wait, in seconds of the drain rate.
    """

    def __init__(self, clock: Callable[[], float], *, budget_bytes: int, queue_s: float) -> None:
        self._clock = clock
        self._budget_bytes = budget_bytes
        self.backlog = Backlog(clock, queue_s=queue_s)
        self._permits: set[Permit] = set()
        # Of all permits; kept as they change, since every decision asks for them.
        self._held_bytes = 0
        self._runs: Counter[int] = Counter()  # bytes of their runs: how many permits
        self._used_bytes = 0
        self._floor = MemoryFloor()
        self._busy_at_s = clock() - SETTLED_AFTER_S
        self._under_way_bytes = 0

    @property
    def held_bytes(self) -> int:
        """What admitted requests keep."""
        return self._held_bytes

    @property
    def run_bytes(self) -> int:
        """The largest run that an admitted request needs, or the one under way."""
        return max(self._under_way_bytes, max(self._runs, default=0))

    @property
    def floor_bytes(self) -> int:
        """Memory at rest, and what nothing accounts for."""
        return self._floor.n_bytes

    @property
    def idle_floor_bytes(self) -> int:
        """Memory at rest, as it was when nothing was admitted."""
        return self._floor.idle_bytes

    @property
    def idle_s(self) -> float:
        """How long nothing has been admitted; 0 while something is."""
        return 0.0 if self._permits else self._clock() - self._busy_at_s

    @property
    def has_settled(self) -> bool:
        """Whether memory at rest has been measured since a model opened or closed last."""
        return self._floor.has_settled

    @property
    def rest_ratio(self) -> float:
        """Memory at rest over the budget, as lines are drawn by it.

        Only what was measured in a server that had settled moves a line, or what lasts for minutes
        in one that never does: right after a model has opened, what its conversion used is there
        still.
        """
        return self._floor.lasting_bytes / self._budget_bytes

    @property
    def predicted_bytes(self) -> int:
        """What is in use and promised, at its peak."""
        accounted = self.floor_bytes + self.held_bytes + self.run_bytes
        return max(accounted, self._used_bytes)

    @property
    def line_bytes(self) -> int:
        """What admission defends."""
        return round(admission_ratio(self.rest_ratio) * self._budget_bytes)

    def observe(self, used_bytes: int, budget_bytes: int) -> None:
        """Take a fresh measurement of memory."""
        now_s = self._clock()
        self._budget_bytes = budget_bytes
        self._used_bytes = used_bytes
        if not self._permits:
            idle_s = now_s - self._busy_at_s
            self._floor.note_idle(now_s, used_bytes, idle_s=idle_s, open_bytes=self._open_bytes)
            return
        self._busy_at_s = now_s
        accounted_bytes = self.held_bytes + self.run_bytes
        self._floor.note_busy(
            now_s, used_bytes, accounted_bytes=accounted_bytes, open_bytes=self._open_bytes
        )

    def measure_rest_anew(self, used_bytes: int) -> None:
        """A model has opened, so what the server took at rest before tells nothing now.

        used_bytes: a fresh measurement. Above the breaker's line it is no rest but trouble, which a
        model that opens in the midst of it does not end.
        """
        if used_bytes > self._open_bytes:
            return
        self._used_bytes = used_bytes
        accounted_bytes = self._held_bytes + self._under_way_bytes
        self._floor.begin_anew(used_bytes, accounted_bytes=accounted_bytes)
        self._busy_at_s = self._clock()

    def begin_run(self, n_bytes: int) -> None:
        """A run takes so much from now on; without this it would pass for memory of the floor."""
        self._under_way_bytes = n_bytes

    def end_run(self, n_tokens: int, seconds: float) -> None:
        """End a run, and tell the backlog how fast it was."""
        self._under_way_bytes = 0
        self.backlog.note_run(n_tokens, seconds)

    def largest_bytes(self, demand: Demand) -> int:
        """What a request of this kind might take in an idle server."""
        return max(0, self._line_of(demand) - self._floor.certain_bytes)

    def headroom_bytes(self, demand: Demand, *, run_ratio: float = 0.0, kept_bytes: int = 0) -> int:
        """What `demand` may take at its peak now, where runs are left this share of the room.

        Its run does not come on top of the largest one that is reserved already, and memory in
        use above everything that is accounted for counts as it stands. kept_bytes: of it already.
        """
        room_bytes = self.line_bytes - self.floor_bytes
        run_bytes = max(self.run_bytes, round(run_ratio * room_bytes))
        predicted_bytes = self.floor_bytes + self.held_bytes + run_bytes
        spared_bytes = min(demand.run_bytes, run_bytes)
        taken_bytes = max(predicted_bytes, self._used_bytes) - spared_bytes
        left_bytes = self._left_bytes(demand, kept_bytes)
        return max(0, self._line_of(demand) - taken_bytes - left_bytes)

    def reserve(self, permit: Permit, demand: Demand) -> None:
        """Let a permit stand for `demand`, instead of what it stood for before."""
        self._take_out(permit)
        permit.demand = demand
        permit.tokens_left = demand.n_tokens
        self._enter(permit)
        if demand.n_tokens:
            self._end_place(permit)

    def keep(self, permit: Permit, n_bytes: int) -> None:
        """Let a permit hold so many bytes beside its demand."""
        self._take_out(permit)
        permit.kept_bytes = n_bytes
        self._enter(permit)

    def note_done(self, permit: Permit, n_tokens: int) -> None:
        """So many tokens of a permit have run."""
        is_held = permit in self._permits
        self._take_out(permit)
        permit.tokens_left = max(0, permit.tokens_left - n_tokens)
        if is_held:
            self._enter(permit)

    def release(self, permit: Permit) -> None:
        """End a request."""
        self._end_place(permit)
        if permit in self._permits:
            self._take_out(permit)
            self._busy_at_s = self._clock()

    def know_again(self, permit: Permit, size: int) -> None:
        """Let a request take up the place that it got when it was refused, where it has one."""
        if size and not permit.size:
            permit.size = size
            permit.place = self.backlog.returns.come_back(size, permit.client)

    def keeps_place(self, permit: Permit) -> bool:
        """Whether a place is kept for a request that is refused, by which it is known again."""
        has_one = permit.place is not None
        return permit.size > 0 and (has_one or not self.backlog.returns.is_full)

    def expect_back(
        self, permit: Permit, demand: Demand, *, room_s: float, retry_after_s: float
    ) -> None:
        """Keep a place for a request that is told when to come back.

        room_s: until the queue has room for it.
        """
        if permit.size:
            place = permit.place or Place(permit.size, permit.client)
            self.backlog.returns.expect(
                place, demand.priority, demand.n_tokens, room_s=room_s, back_s=retry_after_s
            )
            permit.place = None

    def _end_place(self, permit: Permit) -> None:
        """It is let in, or has ended otherwise."""
        if permit.place is not None:
            self.backlog.returns.end(permit.place)
            permit.place = None

    def _enter(self, permit: Permit) -> None:
        self._permits.add(permit)
        self._held_bytes += permit.held_bytes
        self.backlog.add(permit.demand.priority, permit.waiting_tokens, permit.client)
        if permit.demand.run_bytes:
            self._runs[permit.demand.run_bytes] += 1

    def _take_out(self, permit: Permit) -> None:
        """Before a permit changes, or as it ends."""
        if permit not in self._permits:
            return
        self._permits.discard(permit)
        self._held_bytes -= permit.held_bytes
        self.backlog.add(permit.demand.priority, -permit.waiting_tokens, permit.client)
        n_bytes = permit.demand.run_bytes
        if n_bytes:
            self._runs[n_bytes] -= 1
            if not self._runs[n_bytes]:
                del self._runs[n_bytes]

    def room_for_run_bytes(self) -> int:
        """What the next run may take beside everything that admitted requests keep."""
        return max(0, self.line_bytes - self.floor_bytes - self.held_bytes)

    @property
    def _open_bytes(self) -> float:
        """The breaker's line."""
        return OPEN_RATIO * self._budget_bytes

    def _left_bytes(self, demand: Demand, kept_bytes: int) -> int:
        """What `demand` leaves to requests of others, if it is background work.

        No more than half of what an idle server would have beside it: the larger it is, the less
        others find anyway.
        """
        if not demand.yields:
            return 0
        beside_bytes = self.largest_bytes(demand) - demand.peak_bytes - kept_bytes
        return max(0, min(round(LEFT_BEHIND_RATIO * self._budget_bytes), beside_bytes // 2))

    def _line_of(self, demand: Demand) -> int:
        fallback_bytes = round(FALLBACK_RATIO * self._budget_bytes)
        return max(self.line_bytes, fallback_bytes) if demand.is_fallback else self.line_bytes
