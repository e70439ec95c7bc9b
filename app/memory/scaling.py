"""Say whether parallelism should halve, double or stay, from memory and throughput.

A pure rule without history; the scheduler makes caps of what it says, with dwell and hysteresis.
"""

from dataclasses import dataclass

HALVE_ABOVE_RATIO = 0.75
DOUBLE_BELOW_RATIO = 0.50


@dataclass(frozen=True, slots=True)
class ScaleDecision:
    """What to multiply parallelism with: 0.5, 1 or 2."""

    factor: float
    reason: str


def scale_decision(
    utilization_ratio: float, tokens_per_s: float, target_tokens_per_s: float
) -> ScaleDecision:
    """Decide from used memory over budget and from throughput; a target of 0 is always met."""
    if utilization_ratio > HALVE_ABOVE_RATIO:
        return ScaleDecision(0.5, f"used memory above {HALVE_ABOVE_RATIO:.2f}")
    if utilization_ratio >= DOUBLE_BELOW_RATIO:
        return ScaleDecision(1.0, f"used memory not below {DOUBLE_BELOW_RATIO:.2f}")
    if tokens_per_s >= target_tokens_per_s:
        return ScaleDecision(1.0, "throughput meets its target")
    return ScaleDecision(
        2.0, f"used memory below {DOUBLE_BELOW_RATIO:.2f} and throughput below its target"
    )
