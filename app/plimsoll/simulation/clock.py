"""A clock that jumps from one thing that happens to the next."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol


class Timeline(Protocol):
    """The time, and a way to let something happen later."""

    def __call__(self) -> float:
        """Seconds."""

    def plan(self, at_s: float, action: Callable[[], None]) -> None:
        """Let something happen; actions of one moment go in the order they were planned."""


@dataclass
class JumpingClock:
    """Owns the time, and what is still to happen."""

    now_s: float = 0.0
    _actions: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _n_planned: int = 0

    def __call__(self) -> float:
        """Seconds since the start."""
        return self.now_s

    def plan(self, at_s: float, action: Callable[[], None]) -> None:
        """Let something happen, as Timeline says."""
        heapq.heappush(self._actions, (at_s, self._n_planned, action))
        self._n_planned += 1

    def step(self) -> None:
        """Go on to the next action."""
        self.now_s, _, action = heapq.heappop(self._actions)
        action()
