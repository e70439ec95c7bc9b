"""Run one peer through every workload in a fresh process: speed, start, memory, CPU."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from threading import Event
from time import perf_counter, sleep

import numpy as np

from plimsoll.bench.comparison.models import ModelCase
from plimsoll.bench.comparison.processes import SETTLE_S, MeasurementError, process_memory
from plimsoll.bench.peers.peer import PeerKind, RunningPeer
from plimsoll.bench.peers.workloads import MIXED, P50, P99, TOKENS_PER_S, Workload

MIB = 1 << 20
CPU_TIMES = slice(11, 13)  # user's and system's, behind the name in /proc/PID/stat

WORST_COSINE = "worst cosine"
START = "start to first vector"
PEAK, SETTLED = "anonymous memory, peak", "anonymous memory, settled"
PEAK_RESIDENT, SETTLED_RESIDENT = "resident memory, peak", "resident memory, settled"
CPU = f"CPU seconds per 1,000 tokens, {MIXED}"
UNITS = {TOKENS_PER_S: "tokens/s", P50: "ms", P99: "ms"}


@dataclass(frozen=True)
class FigureName:
    """One column of what is measured of every peer."""

    name: str
    unit: str
    lower_is_better: bool = True


def figure_names(workloads: Sequence[Workload]) -> list[FigureName]:
    """Every figure of a run, in the order of the table."""
    speeds = [
        FigureName(f"{one.name}, {figure}", UNITS[figure], figure != TOKENS_PER_S)
        for one in workloads
        for figure in one.figures
    ]
    memory = (PEAK, SETTLED, PEAK_RESIDENT, SETTLED_RESIDENT)
    return [
        *speeds,
        FigureName(START, "s"),
        *(FigureName(name, "MiB") for name in memory),
        FigureName(CPU, "s"),
    ]


def measure(
    kind: PeerKind,
    case: ModelCase,
    workloads: Sequence[Workload],
    *,
    n_threads: int,
    seconds: float,
    compared: Sequence[Sequence[str]],
    reference: np.ndarray,
) -> dict[str, float]:
    """Figures of one fresh process. Raises PeerUnavailableError and MeasurementError.

    seconds: of each workload that is not run once. compared: requests whose vectors are held
    against `reference`; none, and there is no WORST_COSINE.
    """
    start = kind.ready(case, n_threads)
    began = perf_counter()
    with closing(start()) as peer:
        figures = {START: perf_counter() - began}
        if compared:
            figures[WORST_COSINE] = worst_cosine(all_vectors(peer, compared), reference)
        for workload in workloads:
            figures |= run_workload(peer, workload, seconds)
        sleep(SETTLE_S)
        peak = peer.watch.peak
        settled = process_memory(peer.watch.pid)
    if settled is None:
        raise MeasurementError("the process has ended")
    figures[PEAK] = peak.anonymous_bytes / MIB
    figures[PEAK_RESIDENT] = peak.resident_bytes / MIB
    figures[SETTLED] = settled.anonymous_bytes / MIB
    figures[SETTLED_RESIDENT] = settled.resident_bytes / MIB
    return figures


def all_vectors(peer: RunningPeer, requests: Sequence[Sequence[str]]) -> np.ndarray:
    """Unit vectors of every text of these requests: float32 (texts, hidden)."""
    return np.concatenate([peer.vectors(request) for request in requests])


def run_workload(peer: RunningPeer, workload: Workload, seconds: float) -> dict[str, float]:
    """Figures of one workload. Every request is awaited; the last ones may end after `seconds`.

    Where it breaks off, the clients end with the peer, which the caller closes.
    """
    n_requests = len(workload.requests)
    if not workload.once:
        peer.embed(workload.requests[-1])  # wakes pools and buffers up
    numbers, stop = count(), Event()
    cpu_before = cpu_seconds(peer.watch.pid)
    started = perf_counter()

    def client() -> list[tuple[float, int]]:
        """Latency and tokens of each request that this client took."""
        done: list[tuple[float, int]] = []
        while not stop.is_set() and (
            not done or workload.once or perf_counter() - started < seconds
        ):
            number = next(numbers)
            if workload.once and number >= n_requests:
                break
            sent = perf_counter()
            peer.embed(workload.requests[number % n_requests])
            done.append((perf_counter() - sent, workload.n_tokens[number % n_requests]))
        return done

    pool = ThreadPoolExecutor(workload.n_clients)
    try:
        clients = [pool.submit(client) for _ in range(workload.n_clients)]
        answers = [answer for one in clients for answer in one.result()]
    finally:
        stop.set()
        pool.shutdown(wait=False)  # after a signal a client may still wait for minutes
    taken = perf_counter() - started
    n_tokens = sum(tokens for _, tokens in answers)
    p50_s, p99_s = np.percentile([latency for latency, _ in answers], (50, 99))
    found = {TOKENS_PER_S: n_tokens / taken, P50: 1000 * float(p50_s), P99: 1000 * float(p99_s)}
    figures = {f"{workload.name}, {name}": found[name] for name in workload.figures}
    if workload.name == MIXED:
        figures[CPU] = 1000 * (cpu_seconds(peer.watch.pid) - cpu_before) / n_tokens
    return figures


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, all of its threads. Raises MeasurementError at its end."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError as error:
        raise MeasurementError("the process has ended") from error
    ticks = stat.rpartition(")")[2].split()[CPU_TIMES]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def worst_cosine(vectors: np.ndarray, reference: np.ndarray) -> float:
    """The lowest cosine of a text's two unit vectors."""
    return float((vectors.astype(np.float64) * reference).sum(axis=1).min())
