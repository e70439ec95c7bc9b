"""A migration in a group with a hard memory limit, squeezed in its midst until it has to yield.

A neighbour in the group takes memory until the run stands back, holds it for a while, and gives it
back: nothing is killed, every live request has an answer, and the run goes on by itself to its
verdict, with no text left out. What the run leaves is enough for live requests: they are answered
by vectors, where it stands back. How quick they were is told in figures, and not held: that is a
matter of who else uses the processors. The control, a process that takes the limit, has to be
killed.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx
import pytest

from plimsoll.bench.comparison.limits import LimitedGroup
from tests.acceptance import migrating, patient
from tests.acceptance.ballast import Ballast
from tests.acceptance.limited_load import MIB, ServedFile, can_limit, limited_group, limited_server
from tests.acceptance.live_requests import Answer, LiveRequests, p99_s
from tests.acceptance.neighbours import Neighbours
from tests.fakes import metric
from tests.gguf_weights import write_in_q8
from tests.migration.models import texts

pytestmark = pytest.mark.acceptance

SHIPS, IN_Q8 = "ships", "all-MiniLM-L6-v2.Q8_0"
LIMIT_MIB = 384
LEAST_DENSE_RATIO = 0.95  # memory that nothing accounts for may be in the way for a moment
MOST_USED_RATIO = 0.94  # by the neighbour's doing: what is above may kill
STEP_BYTES = 12 * MIB
CHECK_S = 0.25
LIVE = [
    request
    for number in range(50)
    for request in (
        (f"/collections/{SHIPS}/search", {"query": f"ship {number} under the load line"}),
        ("/embed", {"input": f"how deep may ship {number} be loaded?"}),
    )
]


@dataclass(frozen=True)
class Extent:
    """How many documents, how long each of the three times is measured, and how often squeezed."""

    n_documents: int
    measured_s: float
    n_squeezes: int


@pytest.fixture
def extent(is_soak: bool) -> Extent:
    return Extent(60_000, 60.0, 3) if is_soak else Extent(10_000, 8.0, 1)


@pytest.fixture(autouse=True)
def _limits() -> None:
    if reason := can_limit():
        pytest.skip(f"no hard memory limit can be set here: {reason}")


class Squeeze:
    """Takes memory of a group, a step for each that a migration makes, until it stands back.

    So no more is taken than the run leaves, and what is left is for those that it gives way to.
    """

    def __init__(self, url: str, number: int, ballast: Ballast) -> None:
        self.reasons: set[str] = set()
        self.peak_ratio = 0.0
        self._url, self._number, self._ballast = url, number, ballast
        self._n_embedded = -1

    def step(self) -> dict[str, Any]:
        """Look once, and take more where the run goes on and there is some; returns the status."""
        found = migrating.status(self._url, self._number)
        memory = patient.get(f"{self._url}/health").json()["memory"]
        self.peak_ratio = max(self.peak_ratio, memory["used_bytes"] / (LIMIT_MIB * MIB))
        if found["yielding"] is not None:
            self.reasons.add(found["yielding"])
        elif found["embedded"] > self._n_embedded and self._has_more(memory["used_bytes"]):
            self._ballast.grow(STEP_BYTES)
            self._n_embedded = found["embedded"]
        return found

    def _has_more(self, used_bytes: int) -> bool:
        return used_bytes + STEP_BYTES < MOST_USED_RATIO * LIMIT_MIB * MIB


def squeezed(
    url: str, number: int, group: LimitedGroup, seconds: float
) -> tuple[Squeeze, float, float]:
    """Squeeze until it has yielded, and hold that; returns also when that time began and ended."""
    with Ballast(group) as ballast:
        squeeze = Squeeze(url, number, ballast)
        deadline_s = monotonic() + patient.DEADLINE_S
        while not squeeze.reasons:
            found = squeeze.step()
            assert found["state"] == "running", found  # it ended before it had to yield
            assert monotonic() < deadline_s, "it never yields"
            sleep(CHECK_S)
        begin_s = monotonic()
        while monotonic() < begin_s + seconds:
            squeeze.step()
            sleep(CHECK_S)
        return squeeze, begin_s, monotonic()


def figures_of(answers: Sequence[Answer]) -> dict[str, Any]:
    """Of one of the times."""
    by_path = {
        name: [one for one in answers if one.request[0].endswith(name)]
        for name in ("search", "embed")
    }
    return {
        "requests": len(answers),
        "without_answer": sum(one.status != 200 for one in answers),
        "dense": sum(one.is_dense for one in answers),
        **{f"{name}_p99_s": p99_s(some) for name, some in by_path.items()},
    }


def test_a_run_that_is_squeezed_stands_back_and_ends(
    builtin: ServedFile, builtin_file: Path, extent: Extent, tmp_path: Path
):
    other = write_in_q8(builtin_file, tmp_path / f"{IN_Q8}.gguf")
    given = {f"d{number}": text for number, text in enumerate(texts(extent.n_documents))}
    figures = dict[str, Any](documents=extent.n_documents, limit_mib=LIMIT_MIB)
    with limited_server(
        tmp_path, builtin, LIMIT_MIB, PLIMSOLL_EXTRA_MODELS=str(other), PLIMSOLL_IDLE_UNLOAD_S="0"
    ) as (server, group):
        url = server.url
        put = httpx.put(f"{url}/collections/{SHIPS}", json={}, timeout=patient.DEADLINE_S)
        assert put.status_code == 200, put.text
        migrating.put_documents(url, SHIPS, given)
        patient.post(f"{url}/embed", {"input": "a ship", "model": IN_Q8})  # has it converted
        with LiveRequests(url, LIVE, n_threads=2, pause_s=0.05) as live:
            sleep(1)  # the first ones
            neighbours = Neighbours()
            times = {"quiet": (monotonic(), monotonic() + extent.measured_s)}
            sleep(extent.measured_s)
            number = migrating.begin(url, SHIPS, IN_Q8)
            times["running"] = (monotonic(), monotonic() + extent.measured_s / 2)
            sleep(extent.measured_s / 2)
            squeezes = list[Squeeze]()
            for turn in range(extent.n_squeezes):
                squeeze, *times[f"squeezed {turn + 1}"] = squeezed(
                    url, number, group, extent.measured_s
                )
                squeezes.append(squeeze)
            found = migrating.until(url, number, ["ready"])
            taken_ratio = neighbours.taken_ratio
        page = patient.get(f"{url}/metrics").text
        kills, code = group.oom_kills, server.process.poll()
    for name, (begin_s, end_s) in times.items():
        figures[name] = figures_of(live.between(begin_s, end_s))
    figures |= {
        "yields": metric(page, "plimsoll_migration_yields_total"),
        "reasons": sorted({reason for one in squeezes for reason in one.reasons}),
        "peak_ratio": max(one.peak_ratio for one in squeezes),
        "oom_kills": kills,
        "taken_by_others": taken_ratio,
        "load_average": os.getloadavg()[0],
    }
    (tmp_path / "squeezed.json").write_text(json.dumps(figures, indent=1))
    (tmp_path / "server.log").write_text(server.log)

    assert (kills, code) == (0, None)
    assert figures["yields"] >= extent.n_squeezes
    assert (found["vectors"], found["quarantined"]) == (extent.n_documents, 0)
    assert found["verdict"]["decision"] == "go", found["verdict"]
    assert not any(figures[name]["without_answer"] for name in times), figures
    for name in times:
        assert figures[name]["dense"] >= LEAST_DENSE_RATIO * figures[name]["requests"], figures


def test_a_process_that_takes_the_limit_is_killed_by_it():
    """The control: a limit that is silently absent would pass everything above."""
    with limited_group(LIMIT_MIB * MIB) as group:
        greedy = f"bytearray({LIMIT_MIB * MIB}).find(1)"
        subprocess.run([*group.prefix, sys.executable, "-c", greedy], check=False)
        assert group.oom_kills == 1
