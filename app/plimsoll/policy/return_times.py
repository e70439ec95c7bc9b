"""When refused work may come back: places behind the queue of texts, for as long as it is expected.

A request that finds the queue full gets a place behind everything that waits and everything that
was refused before it, so those who are refused together are told one time after the other. Who
comes back at its time takes its own place again: it is known by its client, its size and the time,
since clients send the same body again. A place ends when its client has not come.

Pure: the clock comes in. How a client is told stands here too, for every Retry-After.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from plimsoll.policy.priority import Priority, WaitingTokens, is_query

# OpenAI's clients retry twice. Before 3.0 they heed 60 s at most, and come back after half a second
# where they are told more; those since then heed 120 s, and give up where it is more.
LEAST_TOLD_S, HEEDED_S, MOST_TOLD_S = 1, 60, 120
# Clients come back up to this share later than they might, so that not all come at one moment.
SPREAD_RATIO = 0.1
# No two clocks run alike: a wait may end so much sooner than it was told.
EARLY_S = 0.1
# From the end of a client's wait until its request has come in.
GRACE_S = 2.0
# Beyond these nothing is remembered: of so many hardly one would find room in time.
MOST_PLACES = 1024


def told_s(seconds: float, chance: float) -> int:
    """Whole seconds for Retry-After: from `seconds` on, up to a tenth more by `chance`, 0 to 1.

    Never less than `seconds`, within 1 and 120; what all clients heed stays so.
    """
    most_s = HEEDED_S if seconds <= HEEDED_S else MOST_TOLD_S
    return math.ceil(min(most_s, max(LEAST_TOLD_S, seconds * (1 + SPREAD_RATIO * chance))))


def wait_s(room_s: float, *, in_two: bool) -> float:
    """How long a request should wait that finds room after so many seconds.

    What is too far for one Retry-After that all clients heed, and not for two of them, is reached
    so: the first goes half the way. in_two: it may be reached so.
    """
    goes_half = in_two and HEEDED_S < room_s <= 2 * HEEDED_S
    return room_s / 2 if goes_half else min(MOST_TOLD_S, room_s)


@dataclass(eq=False, slots=True)
class Place:
    """Where refused work stands.

    size: by which it is known again. client: whose it is. priority, n_tokens: what it takes, as far
        as that is known.
    room_at_s: when there is room for it. back_at_s, until_s: its client is expected between these.
    is_back: it has come, and is being decided on.
    """

    size: int
    client: object = None
    priority: Priority = Priority.BULK
    n_tokens: int = 0
    room_at_s: float = 0.0
    back_at_s: float = 0.0
    until_s: float = 0.0
    is_back: bool = False

    @property
    def is_query(self) -> bool:
        """Whether it is one line of text that is waited for."""
        return is_query(self.priority, self.n_tokens)


class ReturnTimes:
    """Owns the places of refused work, in the order in which it was refused first."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._places: dict[Place, None] = {}
        # Of all places; kept as they change, since every decision asks for them.
        self._tokens: Counter[tuple[Priority, bool]] = Counter()
        self._of: Counter[object] = Counter()  # places by client
        self._look_at_s = math.inf  # none is missed before that

    def __len__(self) -> int:
        self._end_missed()
        return len(self._places)

    def has(self, client: object) -> bool:
        """Whether work of a client is to come back."""
        self._end_missed()
        return self._of[client] > 0

    @property
    def is_full(self) -> bool:
        """Whether no further work is remembered."""
        return len(self._places) >= MOST_PLACES

    def come_back(self, size: int, client: object = None) -> Place | None:
        """Take up a client's first place of this size whose time has come, where there is one."""
        self._end_missed()
        latest_s = self._clock() + EARLY_S
        for place in self._places:
            is_its = place.client is client and place.size == size
            if is_its and not place.is_back and place.back_at_s <= latest_s:
                place.is_back = True
                return place
        return None

    def ahead(self, place: Place | None, *, of_queries: bool) -> WaitingTokens:
        """Tokens of work that has its place before this one; None: of all.

        of_queries: of one-line texts alone.
        """
        self._end_missed()
        if place is None:
            return _by_class(self._tokens, of_queries=of_queries)
        tokens: Counter[tuple[Priority, bool]] = Counter()
        for other in self._places:
            if other is place:
                break
            tokens[other.priority, other.is_query] += other.n_tokens
        return _by_class(tokens, of_queries=of_queries)

    def is_due(self, place: Place) -> bool:
        """Whether the time has come at which there was to be room."""
        return place.room_at_s <= self._clock() + EARLY_S

    def expect(
        self, place: Place, priority: Priority, n_tokens: int, *, room_s: float, back_s: float
    ) -> None:
        """Keep a place until its client, which is told to wait for `back_s`, may have come back.

        priority, n_tokens: as they are known now. room_s: until there is room for it.
        """
        now_s = self._clock()
        is_known = place in self._places
        if not is_known and self.is_full:
            return
        if is_known:
            self._tokens[place.priority, place.is_query] -= place.n_tokens
        place.priority, place.n_tokens = priority, n_tokens
        place.room_at_s = now_s + room_s
        place.back_at_s = now_s + back_s
        place.until_s = now_s + told_s(back_s, 1.0) + GRACE_S
        place.is_back = False
        self._places[place] = None
        self._of[place.client] += not is_known
        self._tokens[priority, place.is_query] += n_tokens
        self._look_at_s = min(self._look_at_s, place.until_s)

    def end(self, place: Place) -> None:
        """Its work is let in, or has ended otherwise."""
        if place in self._places:
            del self._places[place]
            self._of[place.client] -= 1
            if not self._of[place.client]:
                del self._of[place.client]
            self._tokens[place.priority, place.is_query] -= place.n_tokens

    def _end_missed(self) -> None:
        now_s = self._clock()
        if now_s <= self._look_at_s:
            return
        expected = [place for place in self._places if not place.is_back]
        for place in expected:
            if place.until_s < now_s:
                self.end(place)
        self._look_at_s = min((p.until_s for p in expected if p.until_s >= now_s), default=math.inf)


def _by_class(tokens: Mapping[tuple[Priority, bool], int], *, of_queries: bool) -> WaitingTokens:
    def of(priority: Priority) -> int:
        queries = tokens.get((priority, True), 0)
        return queries if of_queries else queries + tokens.get((priority, False), 0)

    return WaitingTokens(of(Priority.INTERACTIVE), of(Priority.BULK))
