"""Answer otherwise where memory, or a model that is not there yet, forbids the primary answer."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from plimsoll.errors import (
    BreakerOpenError,
    EncodeMemoryError,
    MemoryPressureError,
    ModelLoadingError,
    OverloadError,
    PlimsollError,
    TooLargeError,
)
from plimsoll.serving.gate import RequestPermit
from plimsoll.serving.tasks import Degraded, Fallback
from plimsoll.telemetry.pressure import PressureMetrics, Recovery

# Why an answer is not the primary one.
DEGRADING = (MemoryPressureError, BreakerOpenError, ModelLoadingError, EncodeMemoryError)
# After so long, memory that was refused may be there.
SHORT_RETRY_S = 1.0

P = TypeVar("P")
S = TypeVar("S")


async def with_fallback(
    fallback: Fallback,
    permit: RequestPermit,
    metrics: PressureMetrics,
    primary: Callable[[], Awaitable[P]],
    secondary: Callable[[Degraded], Awaitable[S]],
) -> P | S:
    """The primary answer, or the secondary one where it is refused and `fallback` allows that.

    What the primary one demanded is given back before the secondary one begins. Raises what they
    raise; a secondary answer that could never fit is no reason to send less, so then the first
    refusal is raised.
    """
    try:
        return await primary()
    except DEGRADING as error:
        if fallback == "none":
            raise
        # Without the frames, which hold what the primary answer had so far.
        refusal: PlimsollError = error.with_traceback(None)
    permit.drop()
    degraded = _degraded(refusal)
    metrics.degraded(degraded.reason)
    try:
        substitute = await secondary(degraded)
    except TooLargeError:
        raise refusal from None
    metrics.recovered(Recovery.FALLBACK_ANSWERED)
    return substitute


def _degraded(refusal: PlimsollError) -> Degraded:
    if isinstance(refusal, ModelLoadingError):
        return Degraded("model_loading", refusal.retry_after_s)
    if isinstance(refusal, OverloadError):
        return Degraded(refusal.code, refusal.retry_after_s)
    return Degraded("out_of_memory", SHORT_RETRY_S)
