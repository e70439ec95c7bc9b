"""What a peer is: how it is found, started, asked and stopped.

A new peer is a PeerKind in `catalog`. Its `start` gives a RunningPeer: a server of any make
(`server_peer`), or a library in a process of its own (`library_peer`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from plimsoll.bench.comparison.models import ModelCase
from plimsoll.bench.comparison.processes import MemoryWatch

# Plimsoll's idle watch gives memory back after a second; every peer is given as long as this.
SETTLE_S = 3.0


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

    def settle(self) -> None:
        """Wait until the peer has given back what it gives back when idle."""

    def stop(self) -> None:
        """End the process and wait for it."""


Start = Callable[[ModelCase, int], RunningPeer]


@dataclass(frozen=True)
class PeerKind:
    """One configuration of a program. Those of one name compete: the best of them counts."""

    name: str
    how: str  # "REST", or "in process": what a call to it passes through
    start: Start  # model, threads; raises PeerUnavailableError and MeasurementError
    variant: str = ""
    prepare: Callable[[], None] | None = None  # get what the peer needs into the cache, once

    @property
    def title(self) -> str:
        """Name and variant."""
        return f"{self.name} {self.variant}".strip()
