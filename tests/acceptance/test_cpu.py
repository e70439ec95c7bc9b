"""The parallelism follows the processors that are really there, while the server runs."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from plimsoll.machine.cpu import available_cores
from plimsoll.machine.groups import USUAL_CGROUP_ROOT, own_groups
from tests.acceptance import patient
from tests.acceptance.neighbours import needs_peace
from tests.acceptance.patient import DEADLINE_S
from tests.running_server import RunningServer

pytestmark = pytest.mark.acceptance

PERIOD_US = 100_000
POLL_S = 0.25


@contextmanager
def cpu_group() -> Iterator[tuple[Path, Callable[[float | None], None]]]:
    """A processor group of our own and how to set its quota, in cores; skips where none can be."""
    parents = own_groups(Path("/proc"), USUAL_CGROUP_ROOT, "cpu")
    if not parents:
        pytest.skip("no processor control group is mounted here")
    parent = parents[0]
    folder = parent.folder / f"plimsoll-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no processor group can be made here: {error}")

    def set_quota(cores: float | None) -> None:
        quota = None if cores is None else round(cores * PERIOD_US)
        if parent.version == 1:
            (folder / "cpu.cfs_quota_us").write_text(str(-1 if quota is None else quota))
        else:
            (folder / "cpu.max").write_text(f"{'max' if quota is None else quota} {PERIOD_US}")

    try:
        yield folder, set_quota
    finally:
        folder.rmdir()


@contextmanager
def neighbours(n_processes: int) -> Iterator[None]:
    """Processes that take a core each."""
    spin = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(spin) for _ in range(n_processes)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def wait_for_plan(url: str, is_right: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Ask /health until the plan is right."""
    deadline = time.monotonic() + DEADLINE_S
    with httpx.Client(trust_env=False, timeout=DEADLINE_S) as client:
        while time.monotonic() < deadline:
            plan = client.get(f"{url}/health").json()["plan"]
            if is_right(plan):
                return plan
            time.sleep(POLL_S)
    pytest.fail(f"the plan never became right: {plan}")


def test_engine_threads_follow_a_quota_that_changes_while_the_server_runs(
    model_cache: Path, tmp_path: Path
):
    """An orchestrator may resize a container in place."""
    if available_cores() < 2:
        pytest.skip("with one processor there is nothing to follow")
    with cpu_group() as (folder, set_quota):
        set_quota(1.0)
        enter = ["/bin/sh", "-c", 'echo $$ >"$0" && exec "$@"', str(folder / "cgroup.procs")]
        with RunningServer(tmp_path, "--cache-dir", str(model_cache), prefix=enter) as server:
            assert wait_for_plan(server.url, lambda plan: plan["engine_threads"] == 1)
            set_quota(None)
            wait_for_plan(server.url, lambda plan: plan["engine_threads"] >= 2)
            set_quota(1.0)
            wait_for_plan(server.url, lambda plan: plan["engine_threads"] == 1)
            answer = patient.post(f"{server.url}/embed", {"input": "a ship"})
            assert answer.json()["kind"] == "dense"


@needs_peace
def test_a_neighbour_that_takes_every_core_lowers_the_parallelism_until_it_goes(
    model_cache: Path, tmp_path: Path
):
    """Prefetched work is of no use while the processors belong to others."""
    with RunningServer(tmp_path, "--cache-dir", str(model_cache)) as server:
        with neighbours(2 * available_cores()):
            plan = wait_for_plan(server.url, lambda plan: plan["parallelism"] <= 4)
            assert any(reason.startswith("cpu") for reason in plan["reasons"])
        wait_for_plan(server.url, lambda plan: plan["parallelism"] == 8)
