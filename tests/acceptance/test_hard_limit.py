"""The promise: under a hard limit and any load the server is never killed.

Every part has its control: the naive path under the same limit and load has to be killed, or the
limit was not there. Ninety seconds a run, ten minutes with `--soak`.
"""

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import httpx
import pytest

from app.composition import prepare_model
from app.encoder.architecture import read_architecture
from app.gguf.sidecar import Sidecar
from app.settings import Settings
from scripts.benchmarks.naive_export import write_naive
from scripts.load.arrivals import Rate
from scripts.load.plan import LoadPlan
from scripts.load.report import LoadReport
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
)
from tests.acceptance.limited_load import run as run_plan
from tests.running_server import RunningServer
from tests.synthetic import cached_synthetic

pytestmark = pytest.mark.acceptance

PACKS_APART = 1e-6
SETTLE_S = 6.0
WARM_UP = {"short": 4.0, "long": 1.0, "list": 1.0}
CAPACITY_S = 30.0
RECOVERY_S = 15.0
# Shares of the budget and of the load.
MOST_USED_RATIO = 0.70
MOST_FAILED_RATIO = 0.01
LEAST_DENSE_RATIO = 0.99
LEAST_SPEED_RATIO = 0.50
SETTLED_RATIO = 1.10


@dataclass(frozen=True)
class Run:
    """One load on one limited server, and what was seen from outside."""

    report: LoadReport
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


@pytest.fixture(scope="session")
def seconds(request: pytest.FixtureRequest) -> float:
    config = request.config
    return 600.0 if config.getoption("--soak") else float(config.getoption("--load-seconds"))


@pytest.fixture(scope="module", params=["builtin", "nomic"])
def served(
    request: pytest.FixtureRequest, model_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> ServedFile:
    """The built-in model in 256 MiB, and one of Nomic's size in 400 MiB; sidecars are ready."""
    if request.param == "builtin":
        return ServedFile("builtin", 256, model_cache, *_prepared(model_cache, "builtin"))
    file = cached_synthetic(
        request.config.cache.mkdir("synthetic"), quant="Q8_0", name="nomic-embed-text-v1.5"
    )
    cache = tmp_path_factory.mktemp("nomic") / "cache"
    sidecar, weights = _prepared(cache, str(file))
    return ServedFile(str(file), 400, cache, sidecar, weights, source=file)


def _prepared(cache: Path, model: str) -> tuple[Path, Path]:
    """The sidecar's folder, and the file that holds the weights."""
    folder = prepare_model(
        Settings(model=model, cache_dir=cache), lambda done_bytes, total_bytes: None
    )
    sidecar = Sidecar(folder)
    sidecar.close()
    return folder, sidecar.weights_path


@dataclass(frozen=True)
class Capacity:
    """What the server does when memory is no matter."""

    overload: LoadReport  # of as many clients as the limited runs have
    requests_per_s: float  # well-formed ones, of a few clients that fill no queue


@pytest.fixture(scope="module")
def unlimited(served: ServedFile, tmp_path_factory: pytest.TempPathFactory) -> Capacity:
    """Both loads on a server without a limit."""
    folder = tmp_path_factory.mktemp("unlimited")
    with RunningServer(folder, *served.options()) as server:
        _first_vector(server.url)
        few = load(server.url, CAPACITY_S, WELL_FORMED, n_clients=FEW_CLIENTS)
        overload = load(server.url, CAPACITY_S, BOUNDED, n_clients=N_CLIENTS)
    return Capacity(overload, few.per_s(few.totals.dense))


@pytest.fixture(scope="module")
def warm(
    served: ServedFile, seconds: float, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Run]:
    """The whole load from a sidecar that is there already."""
    return _measured(served, tmp_path_factory.mktemp("warm"), seconds)


def _measured(served: ServedFile, folder: Path, seconds: float, **variables: str) -> Run:
    exact = variables.get("PLIMSOLL_EXACT") == "true"
    with limited_server(folder, served, **variables) as (server, group):
        watch = UtilizationWatch(server.url)
        try:
            _first_vector(server.url)
            run_plan(LoadPlan(server.url, mix=WARM_UP, n_clients=FEW_CLIENTS, n_requests=24))
            rested_bytes = _settled(watch)
            watch.peak_ratio = 0.0
            report = load(server.url, seconds, n_clients=N_CLIENTS, n_verified=16, exact=exact)
            recovered = _answers_dense(server.url)
            settled_bytes = _settled(watch)
        finally:
            watch.stop()
        run = Run(
            report=report,
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
    assert warm.report.tokens_per_s >= LEAST_SPEED_RATIO * unlimited.overload.tokens_per_s


def test_memory_settles_where_it_was(warm: Run):
    """What a load leaves behind adds up over weeks."""
    assert warm.settled_bytes <= SETTLED_RATIO * warm.rested_bytes


def test_used_memory_stays_below_its_line(warm: Run):
    """Admission defends 0.70 of the budget."""
    assert warm.peak_ratio <= MOST_USED_RATIO


def test_the_conversion_fits_inside_the_limit_too(
    served: ServedFile, seconds: float, tmp_path: Path
):
    """A first start in a small container is when most servers die."""
    cache = tmp_path / "cache"
    if served.name == "builtin":  # fetched, but not converted
        shutil.copytree(served.cache / "built", cache / "built")
    fresh = replace(served, cache=cache)

    run = _measured(fresh, tmp_path, seconds)

    _assert_held(run)


def test_at_half_the_capacity_almost_everything_is_dense(
    served: ServedFile, unlimited: Capacity, tmp_path: Path
):
    """Degrading is for pressure, not for every day."""
    rate = Rate(*[unlimited.requests_per_s / 2] * 2)
    with limited_server(tmp_path, served) as (server, group):
        _first_vector(server.url)
        report = load(server.url, 60.0, WELL_FORMED, rate=rate)
        assert group.oom_kills == 0
    (tmp_path / "half.json").write_text(json.dumps(report.as_dict()))
    # Where a large model answers few requests a minute, one of them is more than a hundredth.
    assert report.totals.dense >= LEAST_DENSE_RATIO * report.totals.sent - 1


def test_exact_vectors_are_the_quiet_ones_bit_for_bit(served: ServedFile, tmp_path: Path):
    """With PLIMSOLL_EXACT neither load nor ladder may show in a vector."""
    run = _measured(served, tmp_path, 30.0, PLIMSOLL_EXACT="true")

    assert run.oom_kills == 0
    assert run.report.verification.n_compared > 0
    assert run.report.totals.failed == 0


@pytest.mark.parametrize("budget_mib", [512, 1024])
def test_larger_budgets_keep_the_line_too(served: ServedFile, budget_mib: int, tmp_path: Path):
    """Peak utilisation at most 0.70, whatever the budget."""
    with limited_server(tmp_path, served, budget_mib) as (server, group):
        watch = UtilizationWatch(server.url)
        _first_vector(server.url)
        load(server.url, 30.0, BOUNDED, n_clients=N_CLIENTS)
        watch.stop()
        assert group.oom_kills == 0
    assert watch.peak_ratio <= MOST_USED_RATIO


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
                module=("tests.acceptance.naive_server",),
            ) as server,
        ):
            load(server.url, 30.0, EVERYTHING, n_clients=N_CLIENTS)
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


def _first_vector(url: str) -> None:
    """Wait for the model: while it converts, requests are refused."""
    with httpx.Client(timeout=180, trust_env=False) as client:
        for _ in range(100):
            answer = client.post(f"{url}/embed", json={"input": "a ship", "fallback": "none"})
            if answer.status_code == 200:
                return
    pytest.fail(f"no vector: {answer.text}")


def _answers_dense(url: str) -> bool:
    """Whether the service returns to dense answers by itself within the recovery timeout."""
    body = {"input": "a ship after the storm"}
    with httpx.Client(timeout=RECOVERY_S + 5, trust_env=False) as client:
        started = math.inf
        for _ in range(200):
            answer = client.post(f"{url}/embed", json=body)
            started = min(started, answer.elapsed.total_seconds())
            if answer.status_code == 200 and answer.json()["kind"] == "dense":
                return True
    return False


def _settled(watch: UtilizationWatch) -> int:
    """Used memory once nothing has run for a while."""
    watch.wait(SETTLE_S)
    return watch.last_used_bytes


def _keep(folder: Path, run: Run, log: str) -> None:
    """For whoever wants the figures of a run."""
    shown = asdict(run) | {"report": run.report.as_dict()}
    (folder / "run.json").write_text(json.dumps(shown, indent=1, default=str))
    (folder / "server.log").write_text(log, encoding="utf-8")
