"""Stand-ins for a model and for what opens it, that a test can hold, break and look into.

A fake text is words of letters; its tokens are 1, the words' numbers, 2. The fake vector of a
text counts its tokens, so two texts differ by what they say, not by whose company they are in.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

import numpy as np
from fastapi import FastAPI

from app.api import native, openai, operations, rank, status
from app.api.boundary import install
from app.api.edge import BodyGate, UnlimitedBodies
from app.api.recent import RecentRequests
from app.encoder.architecture import Architecture, Pooling
from app.encoder.catalog import KnownModel
from app.encoder.model import Traits
from app.encoder.tokenizer import TokenizedText
from app.errors import PlimsollError
from app.memory.cpu import CPUMonitor
from app.memory.monitor import MemoryMonitor
from app.memory.resources import ResourceManager
from app.memory.slots import ModelSlot
from app.serving.core import ServingCore, ServingOptions
from app.serving.served_model import ServedModel
from app.telemetry import Telemetry
from app.tracing import RequestTracer

DEADLINE_S = 60  # for what must come, however busy the machine is
HIDDEN = 4
NOT_FINITE_WORD = "poison"


def fake_traits(name: str = "fake") -> Traits:
    """What the fake model says of itself."""
    architecture = Architecture(
        name="bert",
        n_layers=1,
        hidden=HIDDEN,
        ffn=8,
        n_heads=2,
        vocabulary=256,
        context_tokens=16,
        layer_norm_eps=1e-12,
        pooling=Pooling.MEAN,
        rope_base=None,
    )
    return Traits(
        name=name,
        compute="float32",
        dimensions=HIDDEN,
        token_limit=16,
        known=KnownModel(name=name),
        architecture=architecture,
        content_sha256="00",
        vocabulary_sha256="11",
    )


class FakeModel:
    """Encodes when it is let; keeps every wave that it was given."""

    weights_bytes = 0

    def __init__(self, name: str = "fake") -> None:
        self.traits = fake_traits(name)
        self.waves: list[list[np.ndarray]] = []
        self.encoding = threading.Event()  # set when a wave has arrived
        self.released = threading.Event()  # waves wait for it
        self.released.set()
        self.n_releases = 0
        self.releasing = threading.Event()
        self.release_gate = threading.Event()  # giving memory back waits for it
        self.release_gate.set()
        self.closing = threading.Event()
        self.close_gate = threading.Event()  # closing waits for it
        self.close_gate.set()
        self.closed = threading.Event()
        self.error: Exception | None = None

    def tokenize(self, texts: Sequence[str], input_type: str | None) -> list[TokenizedText]:
        """One token a word, and one at either end."""
        limit = self.traits.token_limit
        tokenized = []
        for text in texts:
            words = [9 if word == NOT_FINITE_WORD else 10 + len(word) for word in text.split()]
            ids = np.array([1, *words, 2], np.int64)
            tokenized.append(TokenizedText(ids[:limit], len(ids)))
        return tokenized

    def tokenize_steps(
        self, texts: Sequence[str], input_type: str | None
    ) -> Iterator[list[TokenizedText]]:
        """One text a step."""
        for text in texts:
            yield self.tokenize([text], input_type)

    def wave_bytes(self, lengths: Sequence[int], **options: object) -> int:
        """A hundred a token."""
        return 100 * sum(lengths)

    def encode(self, wave: Sequence[np.ndarray], **options: object) -> np.ndarray:
        """Sums over tokens, NaN for the poison."""
        assert not self.closed.is_set(), "a closed model was asked to encode"
        self.waves.append(list(wave))
        self.encoding.set()
        assert self.released.wait(DEADLINE_S), "nobody released the model"
        if self.error is not None:
            raise self.error
        rows = [[len(ids), ids.sum(), ids.max(), np.nan if 9 in ids else 1.0] for ids in wave]
        return np.array(rows, np.float64)

    def finish(self, vectors: np.ndarray, dimensions: int) -> np.ndarray:
        """Cut and normalise."""
        cut = vectors[:, :dimensions]
        return (cut / np.linalg.norm(cut, axis=1, keepdims=True)).astype(np.float32)

    def release_memory(self) -> None:
        """Note it."""
        self.n_releases += 1
        self.releasing.set()
        assert self.release_gate.wait(DEADLINE_S), "nobody released the model"

    def close(self) -> None:
        """Wait until let, then note it."""
        self.closing.set()
        assert self.close_gate.wait(DEADLINE_S), "nobody let the model close"
        self.closed.set()


class FakeOpener:
    """Opens fake models when it is let; fails with `errors` first, one a try."""

    def __init__(self, *errors: PlimsollError) -> None:
        self.errors = list(errors)
        self.models: list[FakeModel] = []
        self.next_model = FakeModel()
        self.n_tries = 0
        self.opening = threading.Event()
        self.released = threading.Event()
        self.released.set()

    def open(self, progress: Callable[[int, int], None]) -> FakeModel:
        """Wait until released, then fail or open."""
        self.n_tries += 1
        self.opening.set()
        progress(25, 100)
        assert self.released.wait(DEADLINE_S), "nobody released the opener"
        if self.errors:
            raise self.errors.pop(0)
        self.models.append(self.next_model)
        self.next_model = FakeModel()
        return self.models[-1]


class FakeClock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def fake_slot(
    opener: FakeOpener,
    *names: str,
    idle_unload_s: float = 0,
    clock: Callable[[], float] | None = None,
    telemetry: Telemetry | None = None,
) -> ModelSlot[FakeModel]:
    """A slot over fake models."""
    return ModelSlot(
        names or ("fake",),
        opener,
        telemetry or Telemetry("test"),
        idle_unload_s=idle_unload_s,
        clock=clock or FakeClock(),
    )


class FakeServer:
    """The whole of the API over fake models; `app` needs no lifespan, `close` ends its threads."""

    def __init__(
        self,
        opener: FakeOpener,
        *,
        load_wait_s: float | None = DEADLINE_S,
        body_gate: BodyGate | None = None,
        body_limit_bytes: int = 1 << 20,
        body_timeout_s: float = DEADLINE_S,
        monitor: MemoryMonitor | None = None,
        options: ServingOptions | None = None,
        tracer: RequestTracer | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.telemetry = Telemetry("test")
        model = ServedModel(("fake",), opener, self.telemetry, idle_unload_s=0)
        self.slot = model.slot
        models = ResourceManager([self.slot], max_open=1, load_wait_s=load_wait_s)
        monitor = monitor or MemoryMonitor()
        self.core = ServingCore(
            models, monitor, CPUMonitor(), self.telemetry, options or ServingOptions(), clock=clock
        )
        self.core.start()
        service = self.core.service
        recent = RecentRequests()
        self.app = FastAPI()
        self.parsing = ThreadPoolExecutor(1, thread_name_prefix="parse")
        install(
            self.app,
            self.telemetry,
            recent,
            body_gate=body_gate or UnlimitedBodies(),
            body_limit_bytes=body_limit_bytes,
            body_timeout_s=body_timeout_s,
            parsing=self.parsing,
            tracer=tracer,
        )
        self.app.include_router(native.router(service))
        self.app.include_router(rank.router(self.core.ranking))
        self.app.include_router(openai.router(service, models, created=0))
        self.app.include_router(
            operations.router(
                [model], self.core, monitor, self.telemetry, version="test", draining=lambda: False
            )
        )
        self.app.include_router(status.router(self.core.watch, recent))

    def close(self) -> None:
        """End the threads."""
        self.parsing.shutdown()
        self.core.stop()


def metric(page: str, series: str) -> float:
    """Value of one series in a page of Prometheus metrics; 0 where it is not there yet."""
    for line in page.splitlines():
        if line.startswith(f"{series} "):
            return float(line.split()[-1])
    return 0.0
