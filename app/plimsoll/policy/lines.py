"""The memory table: every line on memory, and what happens above it.

The one home of these numbers: admission, breaker, scheduler, bottleneck, simulation, the log and
the documentation read them here. Ratios are used memory over budget unless a name says otherwise.
Used memory is what the kernel cannot take back at once.
"""

from collections.abc import Collection
from dataclasses import dataclass

# Step 1. Also the line that admission defends: no predicted peak above it is let in.
HIGH_RATIO = 0.70
HIGH_PARALLELISM = 2
# Step 2.
HALVE_ABOVE_RATIO = 0.75
DOUBLE_BELOW_RATIO = 0.50
WORKING_SET_RATIO = 0.95  # working set over budget
STALLS_RATIO = 0.10  # share of time in which some task waited for memory (PSI)
REFAULTS_PER_S = 500.0  # pages that are read again: 2 MiB a second
# Share of time in which some task waited for a disk (PSI), while any pages are read again: on a
# slow disk a few of them hold every run up.
DISK_STALLS_RATIO = 0.15
REFAULTS_SUSTAINED_S = 5.0  # a new model reads its file once, which is no shortage
# Of the budget, below the line: what background work leaves to the requests of others. In 384 MiB
# two searches take 20 MiB at a time, and others of the group take some before it stands back.
LEFT_BEHIND_RATIO = 0.12
# Step 3. The fallback takes little, and has to answer while memory stands above the line.
FALLBACK_RATIO = 0.85
# Step 4: the breaker.
OPEN_RATIO = 0.90
OPEN_AFTER_S = 2.0
CLOSE_RATIO = 0.65
FAILURES, FAILURES_WINDOW_S = 3, 30.0

# Of its size, what the vector cache may take at steps 0, 1 and 2; none at 3 and 4. It goes
# before pages do: a vector can be computed again, and pages serve every text.
CACHE_SHARES = (1.0, 0.5, 0.0)
# It never takes more than this share of the budget: to admission it is memory at rest.
CACHE_RATIO = 0.125

FULL_PARALLELISM = 8
# Tokens of a run for each sequence of the parallelism.
SEQUENCE_TOKENS = 256
# Not memory, but of the same table: load by others and throttling.
CPU_RATIO = 0.80
CPU_PARALLELISM = 4

# Weights over this share of the budget cannot stay resident beside everything else.
RESIDENT_WEIGHTS_RATIO = 0.50
# File pages and everything else together: the kernel takes pages back well before the limit.
FILLED_RATIO = 0.95

# Steps of the ladder that other modules name.
DROPPING_STEP, WAITING_STEP, BREAKER_STEP = 2, 3, 4

HIGH = f"used memory above {HIGH_RATIO:.2f}"
VERY_HIGH = f"used memory above {HALVE_ABOVE_RATIO:.2f}"
WORKING_SET = f"working set above {WORKING_SET_RATIO:.2f}"
STALLS = f"memory stalls above {STALLS_RATIO:.2f}"
REFAULTS = f"refaults above {REFAULTS_PER_S:g} pages a second"
DISK_STALLS = f"disk stalls above {DISK_STALLS_RATIO:.2f} while pages are read again"
# With one of these causes runs wait for the disk, and a pass over the weights is what costs.
READING = (REFAULTS, DISK_STALLS)
SHARED_PASSES = "runs wait for it, so load by others takes threads and no sequences"
CPU = f"others and throttling above {CPU_RATIO:.2f}"


# What people call the steps, from 0.
STEP_NAMES = ("All is well", "Saving memory", "Dropping pages", "Holding back", "Words only")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table: a step of the ladder, when it is taken, and what it does."""

    step: int
    when: str
    effects: tuple[str, ...]


_DROPPING = (
    "the vector cache is dropped",
    "idle models are closed",
    "pages of weights are dropped after each layer, so that one pass serves many texts: the same "
    "vectors, slower",
)
_BY_USED_MEMORY = Row(DROPPING_STEP, VERY_HIGH, ("half of that parallelism", *_DROPPING))
_BY_PAGES = Row(
    DROPPING_STEP,
    f"{WORKING_SET}; {STALLS}; or {REFAULTS} for {REFAULTS_SUSTAINED_S:g} s; or as long, "
    f"{DISK_STALLS}",
    (
        *_DROPPING,
        "parallelism stays: fewer sequences would read the weights more often; where pages are "
        "read again, load by others lowers the threads alone",
    ),
)

TABLE = (
    Row(
        0,
        f"used memory below {HIGH_RATIO:.2f}",
        ("weights stay in memory", f"parallelism up to {FULL_PARALLELISM}"),
    ),
    Row(
        1,
        HIGH,
        (
            f"parallelism {HIGH_PARALLELISM}",
            "packs of half the size",
            "half of the vector cache is dropped",
            "unused memory is given back",
        ),
    ),
    _BY_USED_MEMORY,
    _BY_PAGES,
    Row(
        WAITING_STEP,
        "a request finds no room below the line that admission defends",
        (
            "the vector cache is dropped",
            "it waits at most PLIMSOLL_QUEUE_TIMEOUT_S; background work, such as a migration's, "
            f"leaves {LEFT_BEHIND_RATIO:.0%} of the budget to others, and waits while they do",
            "then it gets BM25 or 503",
        ),
    ),
    Row(
        BREAKER_STEP,
        f"{FAILURES} memory failures in {FAILURES_WINDOW_S:g} s, or used memory above "
        f"{OPEN_RATIO:.2f} for {OPEN_AFTER_S:g} s",
        (
            "the vector cache is dropped",
            "the breaker is open: BM25 or 503",
            "after PLIMSOLL_RECOVERY_TIMEOUT_S one request at a time is let through",
            f"closed below {CLOSE_RATIO:.2f} once one of them has succeeded",
        ),
    ),
)


def cache_bytes(asked_bytes: int, budget_bytes: int) -> int:
    """What the vector cache may take of a budget."""
    return min(asked_bytes, round(CACHE_RATIO * budget_bytes))


def effects(step: int, causes: Collection[str]) -> tuple[str, ...]:
    """What a step does; `causes` are the plan's, which tell the two rows of step 2 apart."""
    if step == DROPPING_STEP:
        return (_BY_USED_MEMORY if VERY_HIGH in causes else _BY_PAGES).effects
    return next(row.effects for row in TABLE if row.step == step)


def admission_ratio(rest_ratio: float) -> float:
    """The line that admission defends, over the budget, for a server that rests at `rest_ratio`.

    A server whose rest stands near the line could admit nothing, so there the line is a third of
    the way from its rest to the breaker's. It has no jump and never passes the breaker's line.
    """
    above_rest = rest_ratio + (OPEN_RATIO - rest_ratio) / 3
    return min(OPEN_RATIO, max(HIGH_RATIO, above_rest))
