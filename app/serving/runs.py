"""Choose which waiting texts the engine takes in one run. Pure.

A run grows with the parallelism, and never takes more memory than there is room for. It is kept
short, because whoever comes meanwhile waits for its end. While pages of the weights are dropped it
does not shrink with the parallelism: one pass over them should serve many texts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.encoder.layout import PACK_TOKENS
from app.serving.scheduler import FULL_PARALLELISM, MEMORY_PARALLELISM, Plan

# While used memory is above its line, which the parallelism tells.
SMALL_PACK_TOKENS = PACK_TOKENS // 2
# Tokens of a run for each sequence of the parallelism.
SEQUENCE_TOKENS = 256
# One pass over the weights serves these: more hardly help, and cost activations and time.
MOST_TEXTS = 64
GROWN_TOKENS = FULL_PARALLELISM * SEQUENCE_TOKENS
# A request has so many texts in the engine's queue: a run is under way while the next one waits.
WINDOW_TEXTS = 2 * MOST_TEXTS

# Texts that run together leave this share of the room to requests that come meanwhile.
SHARED_ROOM_RATIO = 0.5

# Bytes of a run of texts of these lengths.
Predict = Callable[[Sequence[int]], int]


@dataclass(frozen=True)
class RunLimits:
    """What the event loop allows the engine at the moment."""

    plan: Plan
    room_bytes: int
    is_paused: bool = False

    @property
    def pack_tokens(self) -> int:
        """Short texts are joined up to so many tokens."""
        is_saving = self.plan.parallelism <= MEMORY_PARALLELISM
        return SMALL_PACK_TOKENS if is_saving else PACK_TOKENS

    def most_tokens(self, *, drops_pages: bool) -> int:
        """Tokens of a run, but for a single text that is longer."""
        return GROWN_TOKENS if drops_pages else self.plan.parallelism * SEQUENCE_TOKENS


def n_texts_of_run(
    lengths: Sequence[int], limits: RunLimits, predict: Predict, *, drops_pages: bool
) -> int:
    """How many of the waiting texts, from the first, make up the next run; 0: not even one fits.

    lengths: tokens of each waiting text, in the order they wait. The first text runs whatever its
    length where memory allows; everything after it has to keep all limits.
    """
    most_tokens = limits.most_tokens(drops_pages=drops_pages)
    n_texts = n_tokens = 0
    for length in lengths[:MOST_TEXTS]:
        if n_texts and n_tokens + length > most_tokens:
            break
        n_texts += 1
        n_tokens += length
    # What a run takes hardly ever falls with one more text: so halve to the most that fits.
    least, most = 0, n_texts
    while least < most:
        middle = (least + most + 1) // 2
        room_bytes = limits.room_bytes * (1 if middle == 1 else SHARED_ROOM_RATIO)
        if predict(lengths[:middle]) <= room_bytes:
            least = middle
        else:
            most = middle - 1
    return least
