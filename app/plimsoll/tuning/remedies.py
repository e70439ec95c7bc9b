"""What the server can do by itself about a bottleneck: bounded, reversible, one thing each.

    memory          room_for_runs        requests wait before they fill the room that runs need
    dequantization  yield_to_conversion  the engine leaves processors to the conversion
    disk            keep_layers          as many layers as fit stay in memory
    cpu             avoid_taken_cores    the engine's threads keep off the processors others use
                    fewer_threads        as many threads as there are processors left

A remedy changes something and can undo it. Whether it helped is for the resolver to find out. It
acts through what it asks of the governor; the parallelism is still the scheduler's to set, which
gets a cap. None repeats a step of the memory table (policy/lines.py).
"""

from typing import Protocol

from plimsoll.machine.threads import ThreadPlacement
from plimsoll.policy.asked import NOTHING_ASKED, Asked
from plimsoll.policy.lines import FILLED_RATIO
from plimsoll.policy.scheduler import Cap
from plimsoll.tuning.bottleneck import BUSY_LINE_RATIO, FULL_RATIO, HELD_BACK_LINE_RATIO, Kind
from plimsoll.tuning.evidence import Evidence

CAP_SOURCE = "bottleneck"
# A cap for a neighbour who has left holds back for nothing.
CAP_OUTLIVES_S = 20.0
# What costs little, and may be why its cause has gone, stays for long.
COSTS_LITTLE_S = 600.0
# Processors that others use as much as this are avoided, where there are some as free as that.
TAKEN_RATIO, FREE_RATIO = 0.40, 0.15
# Of the room between memory at rest and the line that admission defends.
RUN_RATIO = 0.5
# Of the engine's thread pool and of the thread that gives it runs; what ONNX Runtime starts is no
# Python thread.
WORKER_NAMES = ("engine", "runs")


class Remedy(Protocol):
    """One thing that may help against one kind of bottleneck.

    outlives_cause_s: how long it is kept after its bottleneck was named last, which may be because
        the cause has gone or because of the remedy; the less it costs, the longer.
    """

    name: str
    kind: Kind
    outlives_cause_s: float

    @property
    def asked(self) -> Asked:
        """What it asks of the governor; nothing while it is not applied."""

    def apply(self, evidence: Evidence) -> str | None:
        """Do it, and say what changed; None, and nothing done, where there is nothing to do."""

    def revert(self) -> None:
        """Undo it."""


class RoomForRuns:
    """Let requests wait before they fill the room that the engine's runs need.

    What an admitted request holds is taken from the same room as the runs. Where more ask than
    fit, they leave runs so little that a run takes a few texts, which costs most of the engine's
    speed; so all of them wait longer than if some had waited outside. The case of the acceptance
    test (tests/acceptance/test_bottleneck.py) runs three times as fast with it.
    """

    name = "room_for_runs"
    kind = Kind.MEMORY
    outlives_cause_s = COSTS_LITTLE_S

    def __init__(self) -> None:
        self.asked = NOTHING_ASKED

    def apply(self, evidence: Evidence) -> str | None:
        """Leave runs their share, where requests wait for room."""
        if evidence.held_back_ratio < HELD_BACK_LINE_RATIO:
            return None
        self.asked = Asked(run_ratio=RUN_RATIO)
        return f"requests leave {RUN_RATIO:.0%} of the room to runs"

    def revert(self) -> None:
        """Let them fill it again."""
        self.asked = NOTHING_ASKED


class YieldToConversion:
    """Let the engine compute with half of its threads while weights are being converted.

    Conversion and engine share the processors by their numbers of threads. Runs of other models are
    slower for the seconds that a conversion takes, and requests for its model wait less.
    """

    name = "yield_to_conversion"
    kind = Kind.DEQUANTIZATION
    outlives_cause_s = 0.0

    def __init__(self) -> None:
        self.asked = NOTHING_ASKED

    def apply(self, evidence: Evidence) -> str | None:
        """Halve the threads, where engine and conversion want the same processors."""
        plan = evidence.plan
        taken = evidence.own_ratio + evidence.others_ratio + evidence.throttled_ratio
        competes = evidence.busy_ratio >= BUSY_LINE_RATIO and taken >= FULL_RATIO
        if plan is None or plan.engine_threads < 2 or not evidence.is_loading or not competes:
            return None
        n_threads = plan.engine_threads // 2
        self.asked = Asked(most_threads=n_threads)
        return f"{plan.engine_threads} -> {n_threads} engine threads while weights are converted"

    def revert(self) -> None:
        """Let it use all of its threads again."""
        self.asked = NOTHING_ASKED


class FewerThreads:
    """Let the engine have as many threads as others and the quota leave processors for.

    Threads wait for each other at each layer's end: one that has to share its processor holds
    up all. Runs stay as large as they are, since smaller ones are slower.
    """

    name = "fewer_threads"
    kind = Kind.CPU
    outlives_cause_s = CAP_OUTLIVES_S

    def __init__(self) -> None:
        self.asked = NOTHING_ASKED

    def apply(self, evidence: Evidence) -> str | None:
        """Take threads away, where there are more than processors are left."""
        plan = evidence.plan
        left = 1 - evidence.others_ratio - evidence.throttled_ratio
        n_threads = max(1, round(evidence.cores * left))
        if plan is None or n_threads >= plan.engine_threads:
            return None
        self.asked = Asked(most_threads=n_threads)
        return f"{plan.engine_threads} -> {n_threads} engine threads"

    def revert(self) -> None:
        """Let it use all of its threads again."""
        self.asked = NOTHING_ASKED


class AvoidTakenCores:
    """Keep the engine's threads off the processors that others use, one thread for each other."""

    name = "avoid_taken_cores"
    kind = Kind.CPU
    outlives_cause_s = CAP_OUTLIVES_S

    def __init__(self, placement: ThreadPlacement | None = None) -> None:
        self.asked = NOTHING_ASKED
        self._placement = placement or ThreadPlacement(
            lambda thread_name: thread_name.startswith(WORKER_NAMES)
        )

    def apply(self, evidence: Evidence) -> str | None:
        """Move, where some processors are taken and others free."""
        shares = evidence.others_by_core
        taken = sorted(core for core, share in shares.items() if share >= TAKEN_RATIO)
        free = sorted(core for core, share in shares.items() if share <= FREE_RATIO)
        if not taken or not free:
            return None
        rest = sorted(shares.keys() - taken)
        if not self._placement.move(rest):
            return None
        self.asked = Asked((Cap(CAP_SOURCE, len(rest), "others use some of our processors"),))
        numbers = ", ".join(map(str, rest))
        return f"engine threads on processors {numbers} alone"

    def revert(self) -> None:
        """Let them run everywhere again."""
        self._placement.restore()
        self.asked = NOTHING_ASKED


class KeepLayers:
    """Keep as many layers in memory as fit, read the others ahead, give those back at once.

    Layers are used in turn, and the kernel gives up what was used longest ago: where some do not
    fit, by the time that a layer's turn comes it is gone, and all are read in each pass.
    """

    name = "keep_layers"
    kind = Kind.DISK
    outlives_cause_s = COSTS_LITTLE_S

    def __init__(self) -> None:
        self.asked = NOTHING_ASKED

    def apply(self, evidence: Evidence) -> str | None:
        """Keep what fits beside used memory."""
        sizes = evidence.weights
        if sizes is None or evidence.is_loading:
            return None
        room_bytes = round(FILLED_RATIO * evidence.budget_bytes) - evidence.used_bytes
        n_kept = sizes.fitting_layers(room_bytes)
        if n_kept == 0:
            return None
        self.asked = Asked(kept_bytes=room_bytes)
        return f"{n_kept} of {sizes.n_layers} layers stay in memory, the others are read ahead"

    def revert(self) -> None:
        """Treat pages as before."""
        self.asked = NOTHING_ASKED
