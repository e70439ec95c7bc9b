"""A hundred thousand documents: memory lies flat, time is linear, and the forecast comes true."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from time import monotonic, sleep
from typing import Any

import httpx
import numpy as np
import pytest

from plimsoll import Embedder
from plimsoll.bench.comparison.processes import process_memory
from plimsoll.settings import Settings
from tests.acceptance import migrating
from tests.acceptance.limited_load import MIB
from tests.running_server import DEADLINE_S, RunningServer

pytestmark = pytest.mark.acceptance

SHIPS, BUILTIN, SPACE = "ships", "all-MiniLM-L6-v2", "elsewhere"
N = 100_000
N_BARE = 6_000  # that the bare engine is given, before and after
BUDGET_MIB = 512
CHECK_S = 1.0
# Figures that are to be held.
MOST_USED_RATIO = 0.70
MOST_GROWN_BYTES = 16 * MIB  # over the last nine tenths: what the allocator keeps at one time
MOST_UNEVEN_RATIO = 0.10  # a tenth of the documents against the mean of all tenths
MOST_WRONG_ETA_RATIO = 0.15
LEAST_SPEED_RATIO = 0.90  # of the bare engine's rows a second
WORDS = (
    "ship", "load", "line", "sea", "water", "deck", "keel", "mast", "port", "hull", "cargo", "crew",
    "sail", "wind", "tide", "rope", "anchor", "harbour", "captain", "voyage", "timber", "iron",
)  # fmt: skip


@dataclass(frozen=True)
class Moment:
    """How far the run was, and what it took."""

    at_s: float
    n_embedded: int
    eta_s: float | None
    used_bytes: int
    anonymous_bytes: int


def short_texts(n: int) -> list[str]:
    """Texts of sixteen tokens or so, no two alike."""
    chance = Random(7)
    return [f"{' '.join(chance.choices(WORDS, k=11))} {number:06d}" for number in range(n)]


def bare_rows_per_s(cache: Path, given: Sequence[str]) -> float:
    """What the engine alone does, in a process without a server."""
    with Embedder(settings=Settings(cache_dir=cache, idle_unload_s=0)) as embedder:
        embedder.embed(given[:512])
        began_s = monotonic()
        embedder.embed(given)
        return len(given) / (monotonic() - began_s)


def moments(server: RunningServer, number: int) -> Iterator[Moment]:
    """The run, looked at about every second, until all is embedded."""
    with httpx.Client(base_url=server.url, timeout=DEADLINE_S, trust_env=False) as client:
        while True:
            found = client.get(f"/migrations/{number}").json()
            memory = client.get("/health").json()["memory"]
            own = process_memory(server.process.pid)
            assert own is not None
            assert found["state"] in ("running", "validating", "ready"), found
            yield Moment(
                monotonic(),
                found["embedded"],
                found["eta_s"],
                memory["used_bytes"],
                own.anonymous_bytes,
            )
            if found["embedded"] == N:
                return
            sleep(CHECK_S)


def reached_s(seen: Sequence[Moment], n_embedded: float) -> float:
    """When so many were embedded, between the looks before and after."""
    return float(
        np.interp(n_embedded, [one.n_embedded for one in seen], [one.at_s for one in seen])
    )


def figures_of(seen: Sequence[Moment], began_s: float) -> dict[str, Any]:
    """What is to be held, of the whole run."""
    seen = [Moment(began_s, 0, None, seen[0].used_bytes, seen[0].anonymous_bytes), *seen]
    end_s = reached_s(seen, N)
    borders_s = [reached_s(seen, N * tenth / 10) for tenth in range(1, 10)]
    tenths_s = np.diff([began_s, *borders_s, end_s])
    early = next(one for one in seen if one.n_embedded >= N / 5 and one.eta_s is not None)
    later = [one for one in seen if one.n_embedded >= N / 10]
    slope = float(
        np.polyfit([one.at_s for one in later], [one.anonymous_bytes for one in later], 1)[0]
    )
    assert early.eta_s is not None
    return {
        "documents": N,
        "seconds": end_s - began_s,
        "rows_per_s": N / (end_s - began_s),
        "tenths_s": [round(float(one), 2) for one in tenths_s],
        "uneven_ratio": float(np.abs(tenths_s / tenths_s.mean() - 1).max()),
        "eta_at_a_fifth_s": early.eta_s,
        "truth_at_a_fifth_s": end_s - early.at_s,
        "wrong_eta_ratio": abs(early.eta_s / (end_s - early.at_s) - 1),
        "peak_used_ratio": max(one.used_bytes for one in seen) / (BUDGET_MIB * MIB),
        "grown_mib": slope * (end_s - later[0].at_s) / MIB,
        "anonymous_mib": [one.anonymous_bytes >> 20 for one in later[:: max(1, len(later) // 20)]],
    }


def test_a_hundred_thousand_documents(is_soak: bool, model_cache: Path, tmp_path: Path):
    """The engine alone is measured on the same texts before and after; all else must be quiet."""
    if not is_soak:
        pytest.skip("takes about ten minutes: add --soak")
    given = short_texts(N)
    bare = [bare_rows_per_s(model_cache, given[:N_BARE])]
    with RunningServer(
        tmp_path, "--cache-dir", str(model_cache),
        PLIMSOLL_MEMORY_BUDGET=f"{BUDGET_MIB}M",
    ) as server:  # fmt: skip
        httpx.put(f"{server.url}/collections/{SHIPS}", json={"space": SPACE, "dimensions": 2})
        migrating.put_documents(
            server.url, SHIPS, {f"d{n}": text for n, text in enumerate(given)}, SPACE
        )
        began_s = monotonic()
        number = migrating.begin(server.url, SHIPS, BUILTIN)
        seen = list(moments(server, number))
        load = os.getloadavg()[0]
        found = migrating.until(server.url, number, ["ready"])
    bare.append(bare_rows_per_s(model_cache, given[-N_BARE:]))
    figures = figures_of(seen, began_s)
    figures |= {
        "bare_rows_per_s": bare,
        "speed_ratio": figures["rows_per_s"] / (sum(bare) / len(bare)),
        "load_average": load,
    }
    (tmp_path / "long.json").write_text(json.dumps(figures, indent=1))
    assert found["vectors"] == N
    assert figures["peak_used_ratio"] <= MOST_USED_RATIO, figures
    assert abs(figures["grown_mib"]) * MIB <= MOST_GROWN_BYTES, figures
    assert figures["uneven_ratio"] <= MOST_UNEVEN_RATIO, figures
    assert figures["wrong_eta_ratio"] <= MOST_WRONG_ETA_RATIO, figures
    assert figures["speed_ratio"] >= LEAST_SPEED_RATIO, figures
