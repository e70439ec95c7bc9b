"""What one client may take: requests under way, requests a second, tokens a second. Pure.

Rates are kept by the generic cell rate algorithm (ITU-T I.371): one moment a rate, which says
exactly when there is room again. No library is used for it, because a request's tokens are known
only once it has been let in: they are taken all the same, and the debt is waited out. limits,
pyrate-limiter, aiolimiter and throttled-py refuse a cost above the burst, or wait instead of
saying for how long, and none of them tells clients that it refuses together apart.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from plimsoll.errors import ConcurrencyLimitError, RequestRateError, TokenRateError

# What a client has not used of its rate it may use within this time.
BURST_S = 1.0
# So that ten tenths of a second are a second.
ROUNDING_S = 1e-6
# Those who are refused are sent away one behind the other, the last of them at most for so long,
# unless there is no room before.
MOST_TURNS_S = 60.0
# Of a client's requests, until some have ended.
FIRST_REQUEST_S = 1.0
# Of the latest request, in what is typical of a client.
LATEST_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """What each client may take; 0: as much as it wants.

    concurrency: requests under way at once.
    """

    concurrency: int = 0
    requests_per_s: float = 0.0
    tokens_per_s: float = 0.0


class Rate:
    """Owns from when on what was taken has been earned by a rate, which is told in each call."""

    __slots__ = ("earned_at_s",)

    def __init__(self) -> None:
        self.earned_at_s = -inf

    def take(self, n: float, per_s: float, now_s: float) -> None:
        """Take `n`, whether there is room for them or not."""
        self.earned_at_s = max(self.earned_at_s, now_s) + n / per_s

    def room_at_s(self, n: float, per_s: float) -> float:
        """The moment from which on there is room for `n` more."""
        return self.earned_at_s + n / per_s - max(BURST_S, 1 / per_s) - ROUNDING_S


class _Turns:
    """Owns when the last of those that were refused is to come back.

    All of them at once would find room for the first alone, and spend their retries.
    """

    __slots__ = ("_last_s",)

    def __init__(self) -> None:
        self._last_s = -inf

    def next_in_s(self, room_at_s: float, spacing_s: float, now_s: float) -> float:
        """Seconds until there is room for one more, behind all that were refused before it."""
        behind_others_s = min(self._last_s + spacing_s, now_s + MOST_TURNS_S)
        self._last_s = max(room_at_s, behind_others_s)
        return self._last_s - now_s


class ClientAccount:
    """Owns what one client has taken of late, and has under way.

    clock: seconds that never go back.
    """

    __slots__ = (
        "_begun_s", "_clock", "_limits", "_request_turns", "_requests", "_slot_turns",
        "_token_turns", "_tokens", "_typical_s", "_typical_tokens",
    )  # fmt: skip

    def __init__(self, limits: ClientLimits, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._begun_s: list[float] = []  # of requests under way, the first one first
        self._typical_s = FIRST_REQUEST_S
        self._typical_tokens = 0.0
        self._begin(limits)

    @property
    def n_under_way(self) -> int:
        """Requests that were let in and have not ended."""
        return len(self._begun_s)

    def keep_to(self, limits: ClientLimits) -> None:
        """Have these limits from now on; where they are others, what was taken is forgiven."""
        if limits != self._limits:
            self._begin(limits)

    def enter(self) -> float:
        """Let a request in; returns what `leave` wants to know of it.

        Raises ConcurrencyLimitError, RequestRateError and TokenRateError, with the time after which
        there is room; what is refused is not counted.
        """
        limits, now_s = self._limits, self._clock()
        if limits.requests_per_s:
            self._check_requests(limits.requests_per_s, now_s)
        if limits.tokens_per_s:
            self._check_tokens(limits.tokens_per_s, now_s)
        if limits.concurrency:
            self._check_concurrency(limits.concurrency, now_s)
        if limits.requests_per_s:
            self._requests.take(1, limits.requests_per_s, now_s)
        self._begun_s.append(now_s)
        return now_s

    def charge(self, n_tokens: int) -> None:
        """Count tokens of a request that is under way; the next one waits until they are earned."""
        if self._limits.tokens_per_s:
            self._tokens.take(n_tokens, self._limits.tokens_per_s, self._clock())
            self._typical_tokens += LATEST_SHARE * (n_tokens - self._typical_tokens)

    def leave(self, begun_s: float) -> None:
        """End a request that was let in then."""
        self._begun_s.remove(begun_s)
        self._typical_s += LATEST_SHARE * (self._clock() - begun_s - self._typical_s)

    def _begin(self, limits: ClientLimits) -> None:
        self._limits = limits
        self._requests, self._tokens = Rate(), Rate()
        self._request_turns, self._token_turns, self._slot_turns = _Turns(), _Turns(), _Turns()

    def _check_requests(self, per_s: float, now_s: float) -> None:
        room_at_s = self._requests.room_at_s(1, per_s)
        if room_at_s > now_s:
            raise RequestRateError(
                f"this client may send {per_s:g} requests a second, and has sent more; it has to "
                "send fewer, or list more texts in each",
                retry_after_s=self._request_turns.next_in_s(room_at_s, 1 / per_s, now_s),
            )

    def _check_tokens(self, per_s: float, now_s: float) -> None:
        # What it will take is not known yet: there is room as long as anything is left.
        room_at_s = self._tokens.room_at_s(0, per_s)
        if room_at_s > now_s:
            spacing_s = self._typical_tokens / per_s
            raise TokenRateError(
                f"this client may have {per_s:g} tokens a second, and has had those of the next "
                f"{room_at_s - now_s:.3g} s too",
                retry_after_s=self._token_turns.next_in_s(room_at_s, spacing_s, now_s),
            )

    def _check_concurrency(self, most: int, now_s: float) -> None:
        if len(self._begun_s) >= most:
            # A slot is free when the oldest request ends, which takes as long as others took.
            room_at_s = max(now_s, self._begun_s[0] + self._typical_s)
            spacing_s = self._typical_s / most
            raise ConcurrencyLimitError(
                f"this client may have {most} requests under way at once, and has as many",
                retry_after_s=self._slot_turns.next_in_s(room_at_s, spacing_s, now_s),
            )
