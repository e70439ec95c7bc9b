"""A served model as clients and operators know it: its slot, and what it was like when last open.

Looking at it never opens it.
"""

import logging
from collections.abc import Callable
from time import monotonic

from app.encoder.model import EmbeddingModel, Traits
from app.memory.slots import ModelSlot, Opener
from app.telemetry import Telemetry

log = logging.getLogger(__name__)


class ServedModel:
    """Owns a model's slot and the traits of its last open."""

    def __init__(
        self,
        names: tuple[str, ...],
        opener: Opener[EmbeddingModel],
        telemetry: Telemetry,
        *,
        idle_unload_s: float,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """`names`: what clients may call it, its own first. `idle_unload_s` of 0: stays open."""
        self.traits: Traits | None = None  # kept when the model closes
        self.slot = ModelSlot(
            names,
            opener,
            telemetry,
            idle_unload_s=idle_unload_s,
            on_open=self._note_traits,
            clock=clock,
        )

    def _note_traits(self, model: EmbeddingModel) -> None:
        fingerprint = model.traits.fingerprint()
        if self.traits and self.traits.fingerprint() != fingerprint:
            log.warning("%s now gives other vectors: its file has changed", self.slot.name)
        self.traits = model.traits
        log.info("%s is %s", self.slot.name, fingerprint)
