"""The real service in made-up time: an event loop whose clock jumps, and an engine on that clock.

Everything between a request's text and its answer is the server's own: service, gate, governor,
control loop. Only the engine, the model and the monitors are made up.
"""

import asyncio
import selectors
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import astuple, dataclass, field, replace
from typing import Any

import numpy as np

from plimsoll.encoder.layout import run_bytes
from plimsoll.encoder.pooling import RowForm
from plimsoll.encoder.tokenizer import TokenizedText
from plimsoll.errors import EncodeMemoryError, MemoryPressureError
from plimsoll.machine.cpu import CPUSample
from plimsoll.machine.disk import DiskSample
from plimsoll.machine.memory import MemorySample, MemoryUsage
from plimsoll.models.pool import ModelPool
from plimsoll.models.slot import ModelSlot
from plimsoll.policy.costs import WINDOW_TEXTS
from plimsoll.policy.governor import Governor
from plimsoll.policy.priority import Priority
from plimsoll.policy.runs import RunLimits
from plimsoll.serving.control_loop import ControlLoop, Monitors
from plimsoll.serving.embedding import EmbeddingService
from plimsoll.serving.gate import AdmissionGate
from plimsoll.serving.reclaim import Reclaim
from plimsoll.simulation.engine import SimulatedEngine, SimulatedText
from plimsoll.simulation.machine import SimulatedMachine
from plimsoll.simulation.server import CHARACTERS_PER_TOKEN
from plimsoll.telemetry.metrics import Telemetry
from plimsoll.tuning.resolver import BottleneckResolver
from tests.fakes import FakeModel, FakeOpener, fake_traits


class _JumpingSelector(selectors.SelectSelector):
    """Waits for nothing: it tells the loop's clock to jump instead."""

    def __init__(self, jump: Callable[[float], None]) -> None:
        super().__init__()
        self._jump = jump

    def select(self, timeout: float | None = None) -> list[Any]:
        events = super().select(0)
        if not events and timeout:
            self._jump(timeout)
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in which time passes only when nothing is left to do."""

    def __init__(self) -> None:
        self.now_s = 0.0
        super().__init__(_JumpingSelector(self._jump))

    def time(self) -> float:
        return self.now_s

    def __call__(self) -> float:
        """Seconds, as a clock."""
        return self.now_s

    def plan(self, at_s: float, action: Callable[[], None]) -> None:
        """As a simulation's Timeline."""
        self.call_at(at_s, action)

    def _jump(self, seconds: float) -> None:
        self.now_s += seconds


class InlineExecutor(Executor):
    """Does its work at once."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*args, **options))
        except Exception as error:
            future.set_exception(error)
        return future


class ShapedModel(FakeModel):
    """Texts of so many times CHARACTERS_PER_TOKEN letters; what runs take is by the real shape."""

    def __init__(self, machine: SimulatedMachine) -> None:
        super().__init__()
        shape = machine.architecture
        self.weights_bytes = machine.weights_bytes
        self.machine = machine
        self.traits = replace(
            fake_traits(),
            architecture=shape,
            dimensions=shape.hidden,
            token_limit=machine.token_limit,
        )

    def tokenize(self, texts: Sequence[str], input_type: str | None) -> list[TokenizedText]:
        found = []
        for text in texts:
            n_tokens = len(text) // CHARACTERS_PER_TOKEN
            kept = min(n_tokens, self.traits.token_limit)
            found.append(TokenizedText(np.ones(kept, np.int64), n_tokens))
        return found

    def tokenize_steps(
        self, texts: Sequence[str], input_type: str | None, cut: str = "end"
    ) -> Iterator[list[TokenizedText]]:
        """All in one step, as tokenizing takes no time in a simulation."""
        yield self.tokenize(texts, input_type)

    def run_bytes(self, lengths: Sequence[int], **options: Any) -> int:
        return run_bytes(
            self.traits.architecture, lengths, n_threads=self.machine.n_threads, **options
        )


@dataclass(eq=False)
class _Call:
    """The texts of one call of `encode`."""

    rows: "list[asyncio.Future[np.ndarray]]" = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    on_row: Callable[[int], None] = lambda n_tokens: None
    n_done: int = 0
    has_ended: bool = False


class VirtualExecutor:
    """Stands in for RunExecutor: the simulation's engine, on the loop's clock."""

    last_model = None

    def __init__(self, machine: SimulatedMachine, loop: VirtualLoop, governor: Governor) -> None:
        self.engine: SimulatedEngine[_Call] = SimulatedEngine(machine, loop, governor, self)
        self._machine = machine
        self._loop = loop
        self.gate: AdmissionGate | None = None

    def set_limits(self, limits: RunLimits) -> None:
        """They may let a run begin; after what is under way on the loop has been done."""
        self._loop.call_soon(self.engine.start)

    def release_memory(self) -> None:
        """Nothing is kept."""

    async def encode(
        self,
        model: FakeModel,
        texts: Sequence[np.ndarray],
        dimensions: int,
        on_row: Callable[[int], None],
        priority: Priority,
        form: RowForm = "unit",
    ) -> list[np.ndarray]:
        """As the real one: a window of texts in the queue, rows in order."""
        call = _Call(on_row=on_row)
        try:
            for ids in texts:
                if len(call.rows) >= WINDOW_TEXTS:
                    await call.rows[len(call.rows) - WINDOW_TEXTS]
                call.rows.append(self._loop.create_future())
                call.lengths.append(len(ids))
                self.engine.put(call, len(ids), priority)
                self._loop.call_soon(self.engine.start)
            return [await row for row in call.rows]
        finally:
            call.has_ended = True
            for row in call.rows:
                if row.done() and not row.cancelled():
                    row.exception()
                row.cancel()

    def rows_came(self, texts: Sequence[SimulatedText[_Call]], began_s: float) -> None:
        """Texts of one call run in their order."""
        for text in texts:
            call = text.owner
            if not call.has_ended:
                call.on_row(text.n_tokens)
                call.rows[call.n_done].set_result(np.ones(1, np.float32))
                call.n_done += 1
        assert self.gate is not None
        self.gate.wake()

    def found_no_memory(self, text: SimulatedText[_Call]) -> None:
        self._fail(text.owner, EncodeMemoryError("no memory to compute with"))

    def found_no_room(self, text: SimulatedText[_Call]) -> None:
        wait_s = self._machine.queue_timeout_s
        self._fail(text.owner, MemoryPressureError("no room", retry_after_s=wait_s))

    def _fail(self, call: _Call, error: Exception) -> None:
        for row in call.rows[call.n_done :]:
            if not row.done():
                row.set_exception(error)
        call.has_ended = True


class MadeUpMonitor:
    """Memory as the simulation takes it to be, and processors that no other process uses."""

    limits = ()

    def __init__(self, machine: SimulatedMachine) -> None:
        self._machine = machine
        self.extra_bytes = 0
        self.used_by_requests: Callable[[], int] = lambda: 0

    def sample(self) -> MemorySample:
        used, budget = astuple(self.usage())
        return MemorySample(used, used, 0, budget, "group")

    def usage(self) -> MemoryUsage:
        machine = self._machine
        used = machine.floor_bytes + self.extra_bytes + self.used_by_requests()
        return MemoryUsage(used, machine.limit_bytes)


class _Constant:
    """A monitor of something that does not change."""

    def __init__(self, sample: Any) -> None:
        self._sample = sample

    def sample(self) -> Any:
        return self._sample


class _NoOthers:
    def others_s(self) -> dict[int, float]:
        return {}


class VirtualService:
    """The serving parts over a made-up machine, wired as the composition wires them."""

    def __init__(self, machine: SimulatedMachine, loop: VirtualLoop) -> None:
        telemetry = Telemetry("test")
        self.memory = MadeUpMonitor(machine)
        self.governor = governor = Governor(
            loop,
            budget_bytes=machine.limit_bytes,
            cores=machine.n_threads,
            queue_s=machine.queue_s,
            recovery_timeout_s=machine.recovery_timeout_s,
        )
        self.executor = executor = VirtualExecutor(machine, loop, governor)
        self.gate = executor.gate = AdmissionGate(
            governor,
            self.memory.usage,
            executor.set_limits,
            queue_timeout_s=machine.queue_timeout_s,
        )
        self.memory.used_by_requests = lambda: (
            governor.admission.held_bytes + executor.engine.used_bytes
        )
        opener = FakeOpener()
        opener.next_model = ShapedModel(machine)
        slot = ModelSlot(("fake",), opener, telemetry.models, idle_unload_s=0, clock=loop)
        self.models = ModelPool([slot], max_open=1, load_wait_s=None)
        cpu = CPUSample(0.0, 0.0, 0.0, cores=machine.n_threads)
        monitors = Monitors(
            self.memory, _Constant(cpu), _Constant(DiskSample(0, 0, 0.0)), _NoOthers()
        )
        self.control_loop = ControlLoop(
            monitors,
            self.gate,
            executor,
            Reclaim(self.models, executor, telemetry.pressure),
            BottleneckResolver(loop, telemetry.bottleneck, []),
            clock=loop,
        )
        self.service = EmbeddingService(
            self.models,
            executor,
            self.gate,
            telemetry.requests,
            telemetry.pressure,
            InlineExecutor(),
            InlineExecutor(),
        )
