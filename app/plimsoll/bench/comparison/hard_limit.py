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
from plimsoll.bench.comparison.worker import WorkerSpec

MIB = 1 << 20
LIMIT_MIB = 200
SPEED_FLOOR = 0.40
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
    """Cold under the limit and warm without one, in turn; then the control."""
    limited, free, charges = [], [], []
    try:
        for round_ in range(run.sizes.rounds):
            run.say(f"limit: round {round_ + 1} of {run.sizes.rounds}")
            passes, charge = _limited(case, case.spec("engine", drop_pages=True))
            charges.append(charge)
            if passes is None:
                run.note(f"the engine did not survive {LIMIT_MIB} MiB")
                continue
            limited.append(passes)
            warm(case.weights_path)
            free.append(_run(case.spec("engine")))
        run.say("limit: the naive path, which has to be killed")
        _, control = _limited(case, case.spec("naive"))
    except NoLimitError as reason:
        run.note(f"nothing was measured under a hard limit: {reason}")
        return
    _report_charges(run, case, charges, control)
    if limited:
        _report_speed(run, case, limited, free)


def _report_charges(
    run: Run, case: ModelCase, charges: Sequence[_Charge], control: _Charge
) -> None:
    where = f"{LIMIT_MIB} MiB"
    for name, values in (
        ("group usage, peak", [charge.usage_mib for charge in charges]),
        ("group anonymous, peak", [charge.anonymous_mib for charge in charges]),
    ):
        run.add(case, where, name, "MiB", values)
    killed = [float(charge.n_killed) for charge in charges]
    run.add(case, where, "oom_kill", "", killed, floor=Floor("value", at_most=0))
    # Only a model larger than the limit has to break it on the naive path.
    too_large = case.weights_bytes > LIMIT_MIB * MIB
    floor = Floor("value", at_least=1) if too_large else None
    run.add(
        case, where, "oom_kill of the naive path (control)", "", [control.n_killed], floor=floor
    )


def _report_speed(
    run: Run, case: ModelCase, limited: Sequence[_Passes], free: Sequence[_Passes]
) -> None:
    where = f"{LIMIT_MIB} MiB"
    for name in (FIRST, ALL):
        run.add(
            case,
            where,
            f"{len(LENGTHS)} texts, {name}",
            "tokens/s",
            [passes.rates[name] for passes in limited],
            peer="without a limit",
            peer_values=[passes.rates[name] for passes in free],
            floor=Floor("ratio", at_least=SPEED_FLOOR) if case.full_size else None,
        )
    # A file still cached outside the group would fake all of the above.
    layers_mib = 4 * case.linear_parameters / MIB
    run.add(
        case,
        where,
        "read from disk",
        "MiB",
        [passes.read_mib for passes in limited],
        floor=Floor("value", at_least=round(layers_mib)),
    )


def _limited(case: ModelCase, spec: WorkerSpec) -> tuple[_Passes | None, _Charge]:
    """A fresh process in a limited group, the weights evicted; None where it was killed."""
    evict(case.weights_path)
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
