"""The serving parts put together on a fake machine, whose memory and seconds a test sets."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plimsoll.composition.serving import build_core
from plimsoll.machine.cpu import CPUMonitor
from plimsoll.machine.memory import MIB
from plimsoll.models.pool import ModelPool
from plimsoll.policy import lines
from plimsoll.serving.control_loop import Monitors
from plimsoll.telemetry.metrics import Telemetry
from tests.fake_machine import v2_machine
from tests.fakes import DEADLINE_S, HIDDEN, FakeClock, FakeModel, FakeOpener, fake_slot, metric

BUDGET_BYTES = 400 * MIB
FLOOR_RATIO = 0.25
ROOM_BYTES = round((lines.HIGH_RATIO - FLOOR_RATIO) * BUDGET_BYTES)
RECOVERY_S = 15.0
IDS = np.array([1, 15, 2])


class SizedModel(FakeModel):
    """Keeps threads, size of packs and whether pages are dropped; a token takes a MiB."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[int, int, bool]] = []

    def run_bytes(self, lengths: Sequence[int], **options: object) -> int:
        return MIB * sum(lengths)

    def encode(self, texts: Sequence[np.ndarray], **options: Any) -> np.ndarray:
        self.told.append((options["n_threads"], options["pack_tokens"], options["drop_pages"]))
        return super().encode(texts)


class Bench:
    """A core over a machine of two processors and 400 MiB, a quarter of them used at rest."""

    def __init__(self, folder: Path, *, queue_timeout_s: float = 0) -> None:
        self.machine = v2_machine(folder)
        self.limit(BUDGET_BYTES)
        self.use(FLOOR_RATIO)
        self.machine.write_file("a/b/cpu.max", "200000 100000")
        self.clock, self.telemetry = FakeClock(), Telemetry("test")
        self.opener, self.model = FakeOpener(), SizedModel()
        self.opener.next_model = self.model
        self.slot = fake_slot(self.opener, clock=self.clock, telemetry=self.telemetry)
        self.models = ModelPool([self.slot], max_open=1, load_wait_s=DEADLINE_S)
        cpu = CPUMonitor(proc_root=self.machine.proc, cgroup_root=self.machine.cgroup)
        self.core = build_core(
            self.models,
            Monitors(self.machine.monitor(), cpu),
            self.telemetry,
            queue_timeout_s=queue_timeout_s,
            recovery_timeout_s=RECOVERY_S,
            clock=self.clock,
        )

    def limit(self, n_bytes: int) -> None:
        self.machine.write_group("a", max=n_bytes)

    def use(self, ratio: float) -> None:
        """Of the budget at start."""
        n_bytes = round(ratio * BUDGET_BYTES)
        self.machine.write_group("a", stat=f"anon {n_bytes}", current=n_bytes)

    def tick(self, n_seconds: int = 1) -> None:
        """The control loop's, once for each second that passes."""
        for _ in range(n_seconds):
            self.clock.now_s += 1
            self.core.control_loop.tick()

    async def encode(self, ids: np.ndarray = IDS) -> tuple[int, int, bool]:
        """One text's run; what the engine was told for it."""
        assert len(await self.core.executor.encode(self.model, [ids], HIDDEN)) == 1
        while self.core.governor.admission.run_bytes:  # told of the end just after the rows
            await asyncio.sleep(0)
        return self.model.told[-1]

    def fail_for_want_of_memory(self) -> None:
        """As often as it takes to open the breaker."""
        for _ in range(lines.FAILURES):
            permit = self.core.gate.permit()
            permit.failed()
            permit.leave()

    def series(self, name: str) -> float:
        return metric(self.telemetry.render().decode(), f"plimsoll_{name}")

    def run(self, scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run to the end, or fail where something never comes; threads end before the loop."""

        async def whole() -> None:
            self.core.start()
            try:
                await asyncio.wait_for(scenario(), DEADLINE_S)
            finally:
                self.model.released.set()
                self.opener.released.set()
                await asyncio.to_thread(self.core.stop)
                await self.models.close()

        asyncio.run(whole())
