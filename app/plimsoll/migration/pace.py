"""How much of a run is in memory at once, which a hook may lower while memory is short."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BatchLimits:
    """Of one batch the texts and their bytes, and how many batches are embedded at once."""

    texts: int
    bytes: int
    at_once: int


FULL = BatchLimits(texts=64, bytes=64 << 10, at_once=2)
CONSERVATIVE = BatchLimits(texts=16, bytes=16 << 10, at_once=1)


class RunPace:
    """Owns the limits of one run: its reader and its encoder ask it before every batch."""

    def __init__(self) -> None:
        self._limits = FULL

    @property
    def limits(self) -> BatchLimits:
        """What holds now."""
        return self._limits

    @property
    def is_conservative(self) -> bool:
        """Whether less is taken at once than usually."""
        return self._limits == CONSERVATIVE

    def save_memory(self, *, saves: bool) -> None:
        """Take less at once from the next batch on, or as much as usually."""
        self._limits = CONSERVATIVE if saves else FULL
