"""What a peer is: how it is made ready, started, asked and ended.

A new peer is a PeerKind in `catalog`. What it starts is a RunningPeer: a server of any make
(`server_peer`), or a library in a process of its own (`library_peer`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from plimsoll.bench.comparison.models import ModelCase
from plimsoll.bench.comparison.processes import MemoryWatch

FIRST_TEXT = "a first text"  # with whose vector a peer's start ends


class PeerUnavailableError(Exception):
    """A peer cannot be had here, or cannot load this model; says why, and what would help."""


class RunningPeer(Protocol):
    """A started peer, which several threads may ask at once."""

    @property
    def watch(self) -> MemoryWatch:
        """Of the process whose memory and CPU time are the peer's, since it was started."""

    def embed(self, texts: Sequence[str]) -> None:
        """Have these texts embedded, and wait. Raises MeasurementError."""

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors float32 (texts, hidden). Raises MeasurementError."""

    def close(self) -> None:
        """End the process and wait for it; those who wait for an answer get MeasurementError."""


# Returns once the peer has embedded FIRST_TEXT, which is what its start is measured by. Raises
# MeasurementError.
Start = Callable[[], RunningPeer]


@dataclass(frozen=True)
class PeerKind:
    """One configuration of a program. Those of one name compete: the best of them counts."""

    name: str
    how: str  # "REST", or "in process": what a call to it passes through
    # Of a model and a number of threads. Makes the files that the peer loads, which is no part of
    # its start. Raises PeerUnavailableError.
    ready: Callable[[ModelCase, int], Start]
    variant: str = ""
    prepare: Callable[[], None] | None = None  # get what the peer needs into the cache, once

    @property
    def title(self) -> str:
        """Name and variant."""
        return f"{self.name} {self.variant}".strip()
