"""What a trace runs on: sizes by the formulas that the server predicts with, times by a rate."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from plimsoll.encoder.architecture import Architecture
from plimsoll.encoder.layout import FLOAT_BYTES, PACK_TOKENS, run_bytes
from plimsoll.policy.costs import Demand, TextSizes, dense_demand
from plimsoll.policy.lines import FULL_PARALLELISM
from plimsoll.policy.runs import RunLimits
from plimsoll.policy.scheduler import Plan


@dataclass(frozen=True)
class SimulatedMachine:
    """What a trace runs on.

    floor_bytes: memory at rest. tokens_per_s: of the engine with all its threads. token_limit:
    longer texts are cut to it. The last three are the server's settings of these names.
    """

    limit_bytes: int
    architecture: Architecture
    token_limit: int
    floor_bytes: int = 70 << 20
    tokens_per_s: float = 300.0
    n_threads: int = 2
    queue_timeout_s: float = 5.0
    queue_s: float = 30.0
    recovery_timeout_s: float = 15.0

    @property
    def weights_bytes(self) -> int:
        """Of the model, expanded."""
        shape = self.architecture
        n_values = shape.vocabulary * shape.hidden + shape.n_layers * shape.layer_parameters
        return FLOAT_BYTES * n_values

    def demand(self, sizes: TextSizes) -> Demand:
        """What the server takes a request of such texts for."""
        hidden = self.architecture.hidden
        predict = partial(run_bytes, self.architecture, n_threads=self.n_threads)
        return dense_demand(sizes, predict, hidden=hidden, dimensions=hidden)

    def run_bytes(self, lengths: Sequence[int], limits: RunLimits) -> int:
        """What the server takes a run of such texts for."""
        return run_bytes(
            self.architecture,
            lengths,
            n_threads=limits.plan.engine_threads,
            pack_tokens=round(PACK_TOKENS * limits.pack_ratio),
        )

    def compute_s(self, n_tokens: int, plan: Plan, cores_left: float) -> float:
        """How long tokens take with the threads of a plan, on the cores that are left for them."""
        most_threads = min(self.n_threads, FULL_PARALLELISM)
        n_threads = min(plan.engine_threads, most_threads, cores_left)
        return n_tokens / self.tokens_per_s * most_threads / n_threads
