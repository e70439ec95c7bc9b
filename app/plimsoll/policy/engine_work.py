"""How much the engine has done since the start, and how fast it was of late. Pure."""

from collections.abc import Callable

from plimsoll.policy.runs import EngineTotals, RunEnded


class EngineWork:
    """Owns the totals. tokens_per_s: that have run, between the last two observations."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._ended = EngineTotals()
        self._run_began_s: float | None = None
        self._observed_s, self._observed_tokens = clock(), 0
        self.tokens_per_s = 0.0

    @property
    def totals(self) -> EngineTotals:
        """Up to now."""
        under_way_s = 0.0 if self._run_began_s is None else self._clock() - self._run_began_s
        ended = self._ended
        return EngineTotals(ended.busy_s + under_way_s, ended.n_runs, ended.n_tokens, ended.run_s)

    def run_began(self) -> None:
        """A run has started."""
        self._run_began_s = self._clock()

    def run_ended(self, run: RunEnded) -> None:
        """It has ended."""
        ended = self._ended
        self._ended = EngineTotals(
            busy_s=self.totals.busy_s,
            n_runs=ended.n_runs + 1,
            n_tokens=ended.n_tokens + run.n_tokens,
            run_s=ended.run_s + run.seconds,
        )
        self._run_began_s = None

    def observe(self) -> float:
        """Measure the tokens a second since the last call, once a second."""
        now_s, n_tokens = self._clock(), self._ended.n_tokens
        elapsed_s = max(1e-3, now_s - self._observed_s)
        self.tokens_per_s = (n_tokens - self._observed_tokens) / elapsed_s
        self._observed_s, self._observed_tokens = now_s, n_tokens
        return self.tokens_per_s
