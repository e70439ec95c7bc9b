"""Under a hard memory limit far below the weights' size, from a cold file cache.

The engine has to survive and keep its speed; the naive path has to be killed, which shows
that the limit is there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from plimsoll.bench.comparison.limits import LimitedGroup, NoLimitError, evict, limited_group, warm
from plimsoll.bench.comparison.models import ModelCase
from plimsoll.bench.comparison.processes import WorkerDiedError, running
from plimsoll.bench.comparison.report import Floor
from plimsoll.bench.comparison.run import Run
from plimsoll.bench.comparison.worker import Kind, WorkerSpec

MIB = 1 << 20
LIMIT_MIB = 200
SPEED_FLOOR = 0.60
# One run of texts of about 32 tokens.
LENGTHS = [24 + 7 * i % 17 for i in range(32)]
PASSES = 3
FIRST, ALL = "first pass, cold", f"{PASSES} passes, the first cold"


@dataclass(frozen=True)
class _Passes:
    """What one fresh process did: seconds of each pass, and what was read from disks."""

    seconds: Sequence[float]
    read_mib: float

    @property
    def rates(self) -> dict[str, float]:
        """Tokens a second of the first pass and of all."""
        n_tokens = sum(LENGTHS)
        return {
            FIRST: n_tokens / self.seconds[0],
            ALL: n_tokens * len(self.seconds) / sum(self.seconds),
        }


@dataclass(frozen=True)
class _Charge:
    """What a limited group came to."""

    usage_mib: float
    anonymous_mib: float
    n_killed: int


def measure(run: Run, case: ModelCase) -> None:
    """The engine, then the control."""
    layers_mib = round(4 * case.linear_parameters / MIB)
    if not survive(run, case, "engine", least_ratio=SPEED_FLOOR, read_mib=layers_mib):
        return
    run.say("limit: the naive path, which has to be killed")
    _, control = _limited(case, case.spec("naive"))
    # Only a model larger than the limit has to break it on the naive path.
    too_large = case.weights_bytes > LIMIT_MIB * MIB
    floor = Floor("value", at_least=1) if too_large else None
    name = "oom_kill of the naive path (control)"
    run.add(case, f"{LIMIT_MIB} MiB", name, "", [control.n_killed], floor=floor)


def survive(run: Run, case: ModelCase, kind: Kind, *, least_ratio: float, read_mib: int) -> bool:
    """Cold under the limit and warm without one, in turn; False where no limit can be set.

    least_ratio: of the speed without a limit. read_mib: what a pass over cold weights reads.
    """
    limited, free, charges = [], [], []
    try:
        for round_ in range(run.sizes.rounds):
            run.say(f"limit: {kind}, round {round_ + 1} of {run.sizes.rounds}")
            passes, charge = _limited(case, case.spec(kind, drop_pages=True))
            charges.append(charge)
            if passes is None:
                run.note(f"the {kind} did not survive {LIMIT_MIB} MiB")
                continue
            limited.append(passes)
            warm(case.sidecar_folder)
            free.append(_run(case.spec(kind)))
    except NoLimitError as reason:
        run.note(f"nothing was measured under a hard limit: {reason}")
        return False
    _report_charges(run, case, kind, charges)
    if limited:
        _report_speed(run, case, kind, limited, free, least_ratio)
        # A file still cached outside the group would fake all of the above.
        read = [passes.read_mib for passes in limited]
        floor = Floor("value", at_least=read_mib)
        run.add(case, f"{LIMIT_MIB} MiB", f"{kind}, read from disk", "MiB", read, floor=floor)
    return True


def _report_charges(run: Run, case: ModelCase, kind: Kind, charges: Sequence[_Charge]) -> None:
    where = f"{LIMIT_MIB} MiB"
    for name, values in (
        ("group usage, peak", [charge.usage_mib for charge in charges]),
        ("group anonymous, peak", [charge.anonymous_mib for charge in charges]),
    ):
        run.add(case, where, f"{kind}, {name}", "MiB", values)
    killed = [float(charge.n_killed) for charge in charges]
    run.add(case, where, f"{kind}, oom_kill", "", killed, floor=Floor("value", at_most=0))


def _report_speed(
    run: Run,
    case: ModelCase,
    kind: Kind,
    limited: Sequence[_Passes],
    free: Sequence[_Passes],
    least_ratio: float,
) -> None:
    where = f"{LIMIT_MIB} MiB"
    for name in (FIRST, ALL):
        run.add(
            case,
            where,
            f"{kind}, {len(LENGTHS)} texts, {name}",
            "tokens/s",
            [passes.rates[name] for passes in limited],
            peer="without a limit",
            peer_values=[passes.rates[name] for passes in free],
            floor=Floor("ratio", at_least=least_ratio) if case.full_size else None,
        )


def _limited(case: ModelCase, spec: WorkerSpec) -> tuple[_Passes | None, _Charge]:
    """A fresh process in a limited group, the weights evicted; None where it was killed."""
    evict(case.sidecar_folder)
    passes = None
    with limited_group(LIMIT_MIB * MIB) as group:
        try:
            passes = _run(spec, group)
        except WorkerDiedError:
            if not group.oom_kills:
                raise
        n_killed = group.oom_kills
    return passes, _Charge(group.usage_peak_bytes / MIB, group.anonymous_peak_bytes / MIB, n_killed)


def _run(spec: WorkerSpec, group: LimitedGroup | None = None) -> _Passes:
    with running(spec, prefix=group.prefix if group else ()) as worker:
        seconds = [worker.seconds(LENGTHS) for _ in range(PASSES)]
        return _Passes(seconds, worker.ask(read=True)["read_bytes"] / MIB)
