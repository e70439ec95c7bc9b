"""A request of the simulation, from its arrival to its end."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from plimsoll.policy.admission import Permit
from plimsoll.policy.costs import CHARACTERS_PER_TOKEN, IDS_STEP_BYTES, Demand, TextSizes
from plimsoll.simulation.machine import SimulatedMachine
from plimsoll.simulation.report import Fate, RequestRecord
from plimsoll.simulation.trace import Arrival


@dataclass(eq=False)
class SimulatedRequest:
    """What has become of it so far.

    lengths: tokens of each text. demands: one after the other: ids, and then everything.
    n_admitted: of its demands. n_attempts: this one, and those that were refused before it.
    record: from its end on.
    """

    arrival: Arrival
    lengths: Sequence[int]
    demands: Sequence[Demand]
    permit: Permit = field(default_factory=Permit)
    n_admitted: int = 0
    n_attempts: int = 1
    has_waited: bool = False
    n_queued: int = 0
    n_done: int = 0
    wait_s: float | None = None
    record: RequestRecord | None = None

    @classmethod
    def of(cls, arrival: Arrival, machine: SimulatedMachine) -> "SimulatedRequest":
        """Return one that has just come."""
        lengths = [min(n_tokens, machine.token_limit) for n_tokens in arrival.tokens]
        # Tokenizing takes no time here, so room for ids is asked for once.
        sizes = TextSizes.of(lengths)
        ids = [Demand(0, sizes.ids_bytes)] if sizes.ids_bytes >= IDS_STEP_BYTES else []
        return cls(arrival, lengths, [*ids, machine.demand(sizes)])

    @property
    def has_ended(self) -> bool:
        """Whether it has its answer."""
        return self.record is not None

    @property
    def size(self) -> int:
        """Characters of its texts, as made up."""
        return CHARACTERS_PER_TOKEN * sum(self.arrival.tokens)

    def again(self) -> "SimulatedRequest":
        """The same, as its client sends it once more."""
        return SimulatedRequest(
            self.arrival, self.lengths, self.demands, n_attempts=self.n_attempts + 1
        )

    def end(self, fate: Fate, reason: str | None, now_s: float) -> None:
        """Note what it came to."""
        self.record = RequestRecord(
            at_s=self.arrival.at_s,
            n_texts=len(self.lengths),
            n_tokens=sum(self.lengths),
            n_attempts=self.n_attempts,
            fate=fate,
            reason=reason,
            wait_s=self.wait_s,
            answered_s=now_s - self.arrival.at_s,
        )
