"""What becomes of a request, and the numbers behind it."""

from dataclasses import dataclass
from enum import Enum


class Outcome(Enum):
    """What becomes of a request."""

    ADMIT = "admit"
    WAIT = "wait"  # no room at the moment; it may come
    TOO_LARGE = "too_large"
    QUEUE_FULL = "queue_full"
    BREAKER_OPEN = "breaker_open"
    NO_ROOM = "no_room"  # and no wait, or none any longer


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a request, with the numbers behind it.

    peak_bytes: what it takes. headroom_bytes: what it may take now. largest_bytes: what it might
    take in an idle server. predicted_s: until its last row, by the measured drain rate.
    room_s: until the queue has room for it. retry_after_s: for a refusal, which is sooner where
    that is far off. keeps_place: it stands in line until then.
    """

    outcome: Outcome
    peak_bytes: int
    headroom_bytes: int
    largest_bytes: int
    predicted_s: float
    room_s: float
    retry_after_s: float
    keeps_place: bool
