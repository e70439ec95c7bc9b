"""The promise: under a hard limit and any load the server is never killed.

Every part has its control: the naive path under the same limit and load has to be killed, or the
limit was not there. How long a load is: conftest.py; ten minutes with `--soak`.
"""

import json
import shutil
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import httpx
import pytest

from plimsoll.bench.comparison.naive_export import write_naive
from plimsoll.bench.load.arrivals import Rate
from plimsoll.bench.load.plan import LoadPlan
from plimsoll.bench.load.report import LoadReport
from plimsoll.encoder.architecture import read_architecture
from plimsoll.sidecar.sidecar import Sidecar
from tests.acceptance.conftest import Lengths
from tests.acceptance.limited_load import (
    BOUNDED,
    EVERYTHING,
    FEW_CLIENTS,
    MIB,
    N_CLIENTS,
    WELL_FORMED,
    ServedFile,
    UtilizationWatch,
    can_limit,
    evict,
    limited_group,
    limited_server,
    load,
    load_until,
)
from tests.acceptance.limited_load import run as run_plan
from tests.acceptance.neighbours import Neighbours, needs_peace
from tests.acceptance.patient import DEADLINE_S
from tests.running_server import RunningServer

pytestmark = pytest.mark.acceptance

PACKS_APART = 1e-6
REST_S = 4.0  # after the last request the server gives back what runs used
WARM_UP = {"short": 4.0, "long": 1.0, "list": 1.0}
POLL_S = 0.25
# Shares of the budget and of the load.
MOST_USED_RATIO = 0.70
MOST_FAILED_RATIO = 0.01
LEAST_DENSE_RATIO = 0.99
LEAST_SPEED_RATIO = 0.50
SETTLED_RATIO = 1.10
ALLOCATOR_BYTES = 16 * MIB  # what its arenas keep at one time and not at another


@dataclass(frozen=True)
class Run:
    """One load on one limited server, and what was seen from outside.

    tokens_per_s: of the processors' time that neighbours left.
    """

    report: LoadReport
    tokens_per_s: float
    oom_kills: int
    exit_code: int | None
    peak_ratio: float
    rested_bytes: int
    settled_bytes: int
    recovered: bool


@pytest.fixture(scope="session", autouse=True)
def _limits() -> None:
    if reason := can_limit():
        pytest.skip(f"no hard memory limit can be set here: {reason}")


@pytest.fixture(scope="module", params=["builtin", "nomic"])
def served(request: pytest.FixtureRequest) -> ServedFile:
    """The built-in model in 256 MiB, and one of Nomic's size in 400 MiB; sidecars are ready."""
    return request.getfixturevalue(request.param)


@dataclass(frozen=True)
class Capacity:
    """What the server does when memory is no matter."""

    tokens_per_s: float  # as a Run's, under as many clients
    requests_per_s: float  # well-formed ones, of a few clients that fill no queue


@pytest.fixture(scope="module")
def unlimited(
    served: ServedFile, lengths: Lengths, tmp_path_factory: pytest.TempPathFactory
) -> Capacity:
    """Both loads on a server without a limit."""
    folder = tmp_path_factory.mktemp("unlimited")
    with RunningServer(folder, *served.options()) as server:
        assert _answers_dense(server.url)
        few = load(server.url, lengths.side_load_s, WELL_FORMED, n_clients=FEW_CLIENTS)
        neighbours = Neighbours()
        overload = load(server.url, lengths.side_load_s, BOUNDED, n_clients=N_CLIENTS)
    return Capacity(
        overload.tokens_per_s / (1 - neighbours.taken_ratio), few.per_s(few.totals.dense)
    )


@pytest.fixture(scope="module")
def warm(served: ServedFile, lengths: Lengths, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The whole load from a sidecar that is there already."""
    return _measured(served, tmp_path_factory.mktemp("warm"), lengths.load_s, rests=True)


def _settled(rested_bytes: int) -> float:
    """As much as a server may hold after a load that held so much before it."""
    return max(SETTLED_RATIO * rested_bytes, rested_bytes + ALLOCATOR_BYTES)


def _measured(
    served: ServedFile, folder: Path, seconds: float, *, rests: bool = False, **variables: str
) -> Run:
    """Load a limited server. rests: look at its memory at rest before, and after."""
    with limited_server(folder, served, **variables) as (server, group):
        watch = UtilizationWatch(server.url)
        rested_bytes = settled_bytes = 0
        try:
            assert _answers_dense(server.url)
            if rests:
                run_plan(LoadPlan(server.url, mix=WARM_UP, n_clients=FEW_CLIENTS, n_requests=24))
                watch.wait(REST_S)
                rested_bytes = watch.last_used_bytes
            watch.peak_ratio = 0.0
            neighbours = Neighbours()
            report = load(server.url, seconds, n_clients=N_CLIENTS, n_verified=16, exact=True)
            tokens_per_s = report.tokens_per_s / (1 - neighbours.taken_ratio)
            recovered = _answers_dense(server.url)
            if rests:
                settled_bytes = watch.fallen_to(_settled(rested_bytes), DEADLINE_S)
        finally:
            watch.stop()
        run = Run(
            report=report,
            tokens_per_s=tokens_per_s,
            oom_kills=group.oom_kills,
            exit_code=server.process.poll(),
            peak_ratio=watch.peak_ratio,
            rested_bytes=rested_bytes,
            settled_bytes=settled_bytes,
            recovered=recovered,
        )
    _keep(folder, run, server.log)
    return run


def test_the_server_survives_and_answers_everything_it_accepted(warm: Run):
    """Nobody's request is lost: what is not answered densely is sparse or refused in time."""
    _assert_held(warm)


def test_overload_costs_at_most_half_the_speed(warm: Run, unlimited: Capacity):
    """A server that only refuses would survive too."""
    assert warm.tokens_per_s >= LEAST_SPEED_RATIO * unlimited.tokens_per_s


def test_memory_settles_where_it_was(warm: Run):
    """What a load leaves behind adds up over weeks."""
    assert warm.settled_bytes <= _settled(warm.rested_bytes)


def test_used_memory_stays_below_its_line(warm: Run):
    """Admission defends 0.70 of the budget."""
    assert warm.peak_ratio <= MOST_USED_RATIO


def test_the_conversion_fits_inside_the_limit_too(
    served: ServedFile, lengths: Lengths, tmp_path: Path
):
    """A first start in a small container is when most servers die."""
    cache = tmp_path / "cache"
    if served.name == "builtin":  # fetched, but not converted
        shutil.copytree(served.cache / "built", cache / "built")
    fresh = replace(served, cache=cache)

    run = _measured(fresh, tmp_path, lengths.load_s)

    _assert_held(run)


@needs_peace
def test_at_half_the_capacity_almost_everything_is_dense(
    served: ServedFile, unlimited: Capacity, lengths: Lengths, tmp_path: Path
):
    """Degrading is for pressure, not for every day."""
    rate = Rate(*[unlimited.requests_per_s / 2] * 2)
    with limited_server(tmp_path, served) as (server, group):
        assert _answers_dense(server.url)
        report = load(server.url, lengths.load_s, WELL_FORMED, rate=rate)
        assert group.oom_kills == 0
    (tmp_path / "half.json").write_text(json.dumps(report.as_dict()))
    # Where a large model answers few requests a minute, one of them is more than a hundredth.
    assert report.totals.dense >= LEAST_DENSE_RATIO * report.totals.sent - 1


def test_vectors_are_the_quiet_ones_bit_for_bit(warm: Run):
    """Neither load nor ladder may show in a vector."""
    assert warm.oom_kills == 0
    assert warm.report.verification.n_compared > 0
    assert warm.report.totals.failed == 0


def test_larger_budgets_keep_the_line_too(served: ServedFile, lengths: Lengths, tmp_path: Path):
    """Peak utilisation at most 0.70, whatever the budget."""
    for budget_mib in lengths.budgets_mib:
        with limited_server(tmp_path, served, budget_mib) as (server, group):
            watch = UtilizationWatch(server.url)
            assert _answers_dense(server.url)
            load(server.url, lengths.side_load_s, BOUNDED, n_clients=N_CLIENTS)
            watch.stop()
            assert group.oom_kills == 0
        assert watch.peak_ratio <= MOST_USED_RATIO, f"of {budget_mib} MiB"


def test_the_naive_path_is_killed_by_the_same_load(served: ServedFile, tmp_path: Path):
    """The control: without it a limit that is silently absent would pass everything above."""
    sidecar = Sidecar(served.sidecar)
    architecture = read_architecture(sidecar.header)
    sidecar.close()
    onnx = tmp_path / "naive.onnx"
    write_naive(served.sidecar, onnx)
    evict(onnx)
    limit = architecture.context_tokens
    arguments = (str(served.sidecar), str(onnx), architecture.pooling.name, str(limit))
    with limited_group(served.limit_mib * MIB) as group:
        with (
            suppress(RuntimeError, httpx.HTTPError),
            RunningServer(
                tmp_path,
                *arguments,
                prefix=group.prefix,
                command=(sys.executable, "-m", "tests.acceptance.naive_server"),
            ) as server,
        ):
            load_until(
                lambda: group.oom_kills > 0,
                LoadPlan(server.url, mix=EVERYTHING, n_clients=N_CLIENTS, seconds=DEADLINE_S),
            )
        assert group.oom_kills >= 1


def _assert_held(run: Run) -> None:
    totals = run.report.totals
    assert run.oom_kills == 0
    assert run.exit_code is None
    assert run.recovered
    ended = (
        totals.dense + totals.sparse + totals.refused + totals.rejected + totals.failed
        + totals.hung_up
    )  # fmt: skip
    assert ended == totals.sent
    assert totals.failed <= MOST_FAILED_RATIO * totals.sent, totals.causes
    assert run.report.verification.n_compared > 0
    assert run.report.verification.largest_difference <= PACKS_APART


def _answers_dense(url: str) -> bool:
    """Whether vectors come by themselves: after the model has opened, after an open breaker."""
    deadline_s = time.monotonic() + DEADLINE_S
    with httpx.Client(timeout=DEADLINE_S, trust_env=False) as client:
        while time.monotonic() < deadline_s:
            answer = client.post(f"{url}/embed", json={"input": "a ship", "fallback": "none"})
            if answer.status_code == 200:
                return True
            time.sleep(POLL_S)
    return False


def _keep(folder: Path, run: Run, log: str) -> None:
    """Leave the figures of a run beside its server's log."""
    shown = asdict(run) | {"report": run.report.as_dict()}
    (folder / "run.json").write_text(json.dumps(shown, indent=1, default=str))
    (folder / "server.log").write_text(log, encoding="utf-8")
