"""What a process holds in memory after a short text, a long one, and the mixed list."""

from collections.abc import Sequence
from dataclasses import dataclass
from time import sleep

from plimsoll.bench.comparison.models import ModelCase
from plimsoll.bench.comparison.processes import SETTLE_S, MemoryWatch, Worker, process_memory
from plimsoll.bench.comparison.report import Floor
from plimsoll.bench.comparison.run import Run
from plimsoll.bench.comparison.worker import Kind, WorkerSpec

MIB = 1 << 20
SHORT_TOKENS = 16
LONG_TOKENS = 2048
# After so long the server's idle watch gives memory back; the engine alone has no watch.
IDLE_S = 1.0
ANONYMOUS_FLOOR_MIB = 57  # 60 MB


@dataclass(frozen=True)
class _Memory:
    """Of one fresh process, MiB."""

    peak_anonymous: float
    settled_anonymous: float
    peak_resident: float
    settled_resident: float


def measure(run: Run, case: ModelCase) -> None:
    """Fresh processes of both kinds in turn, for each list and round."""
    long_tokens = min(LONG_TOKENS, case.token_limit)
    lists = {
        f"{SHORT_TOKENS}-token text": [SHORT_TOKENS],
        f"{long_tokens}-token text": [long_tokens],
        "mixed list": run.mixed(case),
    }
    rounds = run.sizes.memory_rounds
    bare = []
    for name, lengths in lists.items():
        found: dict[Kind, list[_Memory]] = {"engine": [], "naive": []}
        for round_ in range(rounds):
            run.say(f"memory: {name}, round {round_ + 1} of {rounds}")
            for kind, memories in found.items():
                memories.append(_watch(case.spec(kind), lengths))
            bare.append(_watch(WorkerSpec("bare"), []).settled_anonymous)
        short = name.startswith(str(SHORT_TOKENS))
        _report(run, case, name, found, bare[-rounds:], held=short and case.full_size)


def _report(
    run: Run,
    case: ModelCase,
    name: str,
    found: dict[Kind, list[_Memory]],
    bare: Sequence[float],
    *,
    held: bool,
) -> None:
    floor = Floor("value", at_most=ANONYMOUS_FLOOR_MIB)
    for field, title in (
        ("peak_anonymous", "anonymous, peak"),
        ("settled_anonymous", "anonymous, settled"),
    ):
        ours, theirs = ([getattr(m, field) for m in found[kind]] for kind in ("engine", "naive"))
        _add(run, case, f"{name}: {title}", ours, theirs)
        _add(
            run,
            case,
            f"{name}: {title}, above bare interpreter",
            [value - base for value, base in zip(ours, bare, strict=True)],
            [value - base for value, base in zip(theirs, bare, strict=True)],
            floor=floor if held else None,
        )
    for field, title in (
        ("peak_resident", "resident, peak"),
        ("settled_resident", "resident, settled"),
    ):
        ours, theirs = ([getattr(m, field) for m in found[kind]] for kind in ("engine", "naive"))
        _add(run, case, f"{name}: {title}", ours, theirs)


def _add(
    run: Run,
    case: ModelCase,
    name: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    floor: Floor | None = None,
) -> None:
    run.add(
        case,
        "memory",
        name,
        "MiB",
        ours,
        peer="naive path",
        peer_values=theirs,
        lower_is_better=True,
        floor=floor,
    )


def _watch(spec: WorkerSpec, lengths: Sequence[int]) -> _Memory:
    """Open a peer, encode once, wait; memory over all of it and at the end."""
    worker = Worker(spec)
    watch = MemoryWatch(worker.pid)
    try:
        worker.wait_ready()
        if lengths:
            worker.ask(lengths=list(lengths), repeats=1)
            sleep(IDLE_S)
            worker.ask(release=True)
        sleep(SETTLE_S - IDLE_S)
        settled = process_memory(worker.pid)
        assert settled is not None
    finally:
        peak = watch.stop()
        worker.close()
    return _Memory(
        peak_anonymous=peak.anonymous_bytes / MIB,
        settled_anonymous=settled.anonymous_bytes / MIB,
        peak_resident=peak.resident_bytes / MIB,
        settled_resident=settled.resident_bytes / MIB,
    )
