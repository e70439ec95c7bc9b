"""Halve or double the parallelism, from used memory and throughput.

    used memory above 0.75                                 × 0.5
    below 0.50, and throughput below its target            × 2
    else                                                   × 1

Pure; the scheduler makes a cap of what comes out.
"""

from plimsoll.policy.lines import DOUBLE_BELOW_RATIO, FULL_PARALLELISM, HALVE_ABOVE_RATIO

# Decisions to double are this far apart, so that the last one shows in memory first.
DOUBLE_AFTER_S = 10.0
# A halving outlives its cause at most so long for each doubling back. Where memory at rest is
# above half the budget, the decision to double never comes.
HALVING_OUTLIVES_S = 30.0
# Memory has to be this far below the line for a halving to end without a decision to double.
SLACK_RATIO = 0.05


def scale_factor(
    utilization_ratio: float, tokens_per_s: float, target_tokens_per_s: float
) -> float:
    """What to multiply parallelism with: 0.5, 1 or 2. A target of 0 is always met."""
    if utilization_ratio > HALVE_ABOVE_RATIO:
        return 0.5
    is_low = utilization_ratio < DOUBLE_BELOW_RATIO
    return 2.0 if is_low and tokens_per_s < target_tokens_per_s else 1.0


class ResourceManager:
    """Owns the limit on parallelism that scale decisions make: none, or one on its way back up.

    × 0.5 halves what the other caps allow, not itself: decisions come every second, and three of
    them would stand at 1 before the first one shows in memory.
    """

    def __init__(self) -> None:
        self._limit = FULL_PARALLELISM
        self._changed_s = 0.0

    def next(self, factor: float, utilization_ratio: float, *, allowed: int, now_s: float) -> int:
        """Take the latest decision; `allowed` is what all other caps allow.

        Returns the most sequences that may run, FULL_PARALLELISM where it sets no limit.
        """
        if factor < 1:
            self._limit = max(1, allowed // 2)
            self._changed_s = now_s
        elif self._may_lift(factor, utilization_ratio, now_s):
            self._limit = min(FULL_PARALLELISM, self._limit * 2)
            self._changed_s = now_s
        return self._limit

    def _may_lift(self, factor: float, utilization_ratio: float, now_s: float) -> bool:
        if self._limit >= FULL_PARALLELISM:
            return False
        waited_s = now_s - self._changed_s
        is_low = utilization_ratio <= HALVE_ABOVE_RATIO - SLACK_RATIO
        return (factor > 1 and waited_s >= DOUBLE_AFTER_S) or (
            is_low and waited_s >= HALVING_OUTLIVES_S
        )
