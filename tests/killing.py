"""Work in a process of its own that is killed at any moment, and goes on in another one."""

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.running_server import DEADLINE_S, ROOT, environment


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
            return process.wait(DEADLINE_S if kill_after_s is None else kill_after_s)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait(DEADLINE_S)


def kill_at_random(
    work: Callable[[float], int], n_kills: int, longest_s: float, begin_anew: Callable[[], None]
) -> None:
    """Have work killed so many times, each at a moment drawn from 0 to `longest_s`.

    begin_anew: where it was quicker, and came to its end.
    """
    chance = random.Random(7)
    while n_kills:
        if work(chance.uniform(0, longest_s)) == 0:
            begin_anew()
        else:
            n_kills -= 1
