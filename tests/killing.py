"""Work in a process of its own that is killed at any moment, and goes on in another one."""

import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from plimsoll.corpora.database import FILE_NAME
from tests.running_server import ROOT, environment

PATIENCE_S = 900  # with work of any extent that nothing interrupts

QUERIES = {
    "documents": "SELECT row, id, text, text_sha256 FROM documents_1 ORDER BY row",
    "old": "SELECT row, vector FROM vectors_1 ORDER BY row",
    "new": "SELECT row, vector FROM vectors_2 ORDER BY row",
    "n_vectors": "SELECT sum(n_vectors) FROM segments GROUP BY version ORDER BY version",
    "pointer": """SELECT name, fingerprint FROM collections
        JOIN versions ON versions.id = active_version""",
    "versions": "SELECT fingerprint, state, takes_writes FROM versions ORDER BY id",
    "migrations": "SELECT id, state, n_embedded, n_skipped FROM migrations",
}
"""Everything of a collection that was moved once, but for moments, layout and numbers."""


@dataclass(frozen=True)
class Extent:
    """How large the work is; n_kills: at random, after those in each stage."""

    n_documents: int
    n_kills: int
    n_kills_a_stage: int


USUAL, SOAK = Extent(500, 6, 1), Extent(5000, 100, 10)


def stored(folder: Path, queries: Mapping[str, str] = QUERIES) -> dict[str, Any]:
    """What a server's file has of its one collection.

    queries: as if it had number 1, and its versions 1 and 2: others may have been given up before.
    """
    with closing(sqlite3.connect(folder / "data" / FILE_NAME)) as connection:
        numbers = {
            f"{kind}_{place}": f"{kind}_{number}"
            for kind, asked in (("documents", "collections"), ("vectors", "versions"))
            for place, (number,) in enumerate(
                connection.execute(f"SELECT id FROM {asked} ORDER BY id").fetchall(), start=1
            )
        }

        def look(query: str) -> list[Any]:
            named = re.sub(r"\b(documents|vectors)_\d+\b", lambda one: numbers[one[0]], query)
            return connection.execute(named).fetchall()

        return {name: look(query) for name, query in queries.items()}


def work(module: str, folder: Path, *options: str, kill_after_s: float | None = None) -> int:
    """Run a module that prints "started" once it works; returns how it ended.

    kill_after_s: SIGKILL comes so long after that, unless it has ended.
    """
    command = [sys.executable, "-m", module, str(folder), *options]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        try:
            return process.wait(PATIENCE_S if kill_after_s is None else kill_after_s)
        except subprocess.TimeoutExpired:
            process.kill()
            if kill_after_s is None:  # it hangs, and was not to be killed from here
                raise
            return process.wait(PATIENCE_S)


def kill_at(owner: Any, name: str, number: int, *, is_before: bool = False) -> None:
    """Have this process end as a power cut ends it, when it has called something so many times.

    owner: the module or class that has it. is_before: the call of this number is not made.
    """
    original: Callable[..., Any] = getattr(owner, name)
    n_calls = 0

    def call_or_die(*args: Any, **kwargs: Any) -> Any:
        nonlocal n_calls
        n_calls += 1
        is_now = n_calls == number
        if is_now and is_before:
            os.kill(os.getpid(), signal.SIGKILL)
        answer = original(*args, **kwargs)
        if is_now:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    setattr(owner, name, call_or_die)


def killed_and_not(
    worker: str,
    begin: Callable[[Path], object],
    folder: Path,
    content: Callable[[Path], dict[str, Any]],
    stages: Sequence[str],
    extent: Extent,
    final_stages: Collection[str] = (),
    trouble: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> dict[str, Any]:
    """Have a worker killed in each stage and at random; it ends as one that was not.

    begin: has a folder ready for work. content: what is compared. final_stages: those that work
    comes to once, so that it begins anew behind them. trouble: what else goes wrong for as long as
    kills come at random. Returns the content at the end, and leaves figures in `folder`/kills.json.
    """
    quiet, killed = folder / "quiet", folder / "killed"
    begin(quiet)
    begin(killed)
    began_s = monotonic()
    assert work(worker, quiet) == 0
    whole_s = monotonic() - began_s
    uninterrupted = content(quiet)

    def begin_anew() -> None:
        assert content(killed) == uninterrupted
        shutil.rmtree(killed)
        begin(killed)

    for number in range(extent.n_kills_a_stage):
        for stage in stages:
            is_final = stage in final_stages
            call = 1 if is_final else 1 + number % 2
            assert work(worker, killed, stage, str(call)) == -signal.SIGKILL
            if is_final:
                assert work(worker, killed) == 0
                begin_anew()
    chance, n_left = random.Random(7), extent.n_kills
    with trouble():
        while n_left:  # each at a moment of its own
            if work(worker, killed, kill_after_s=chance.uniform(0, whole_s / 2)) == 0:
                begin_anew()
            else:
                n_left -= 1
        assert work(worker, killed) == 0
    assert content(killed) == uninterrupted
    figures = {
        "documents": extent.n_documents,
        "kills": extent.n_kills + extent.n_kills_a_stage * len(stages),
        "uninterrupted_s": round(whole_s, 1),
        "seconds": round(monotonic() - began_s, 1),
    }
    (folder / "kills.json").write_text(json.dumps(figures))
    return uninterrupted
