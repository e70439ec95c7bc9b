"""Answer otherwise where memory, or a model that is not there yet, forbids the primary answer."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from plimsoll.errors import (
    BreakerOpenError,
    EncodeMemoryError,
    MemoryPressureError,
    ModelLoadingError,
    PlimsollError,
    TooLargeError,
)
from plimsoll.serving.gate import RequestPermit
from plimsoll.serving.tasks import Degraded, Fallback
from plimsoll.telemetry.pressure import PressureMetrics, Recovery

# Why an answer is not the primary one, for now.
DEGRADING = (MemoryPressureError, BreakerOpenError, ModelLoadingError, EncodeMemoryError)
# After so long, memory that was refused may be there.
SHORT_RETRY_S = EncodeMemoryError.retry_after_s

P = TypeVar("P")
S = TypeVar("S")


async def with_fallback(
    fallback: Fallback,
    permit: RequestPermit,
    metrics: PressureMetrics,
    primary: Callable[[], Awaitable[P]],
    secondary: Callable[[PlimsollError], Awaitable[S]],
    degrading: tuple[type[PlimsollError], ...] = DEGRADING,
) -> P | S:
    """The primary answer, or the secondary one where it is refused and `fallback` allows that.

    secondary: is given the refusal, which is one of `degrading`.
    What the primary one demanded is given back before the secondary one begins. Raises what they
    raise; a secondary answer that could never fit is no reason to send less, so then the first
    refusal is raised.
    """
    try:
        return await primary()
    except degrading as error:
        if fallback == "none":
            raise
        # Without the frames, which hold what the primary answer had so far.
        refusal: PlimsollError = error.with_traceback(None)
    permit.drop()
    metrics.degraded(refusal.code)
    try:
        substitute = await secondary(refusal)
    except TooLargeError:
        raise refusal from None
    if isinstance(refusal, DEGRADING):  # else it is no way around want of memory
        metrics.recovered(Recovery.FALLBACK_ANSWERED)
    return substitute


def degraded_by(refusal: PlimsollError) -> Degraded:
    """What a reply says of the refusal that it stands in for."""
    return Degraded(refusal.code, refusal.retry_after_s)
