"""Stand-ins for a model and for what opens it, that a test can hold, break and look into.

A fake text is words of letters; its tokens are 1, the words' numbers, 2. The fake vector of a
text counts its tokens, so two texts differ by what they say, not by whose company they are in.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic

import numpy as np

from plimsoll.api.application import build_application
from plimsoll.api.edge.guard import AccessRules
from plimsoll.api.edge.json_body import JSONLimits
from plimsoll.api.edge.origins import AllowedHosts
from plimsoll.composition.corpora import build_corpora
from plimsoll.composition.links import build_links
from plimsoll.composition.migrations import build_migrations
from plimsoll.composition.serving import build_core
from plimsoll.encoder.architecture import Architecture, Pooling
from plimsoll.encoder.known_models import KnownModel
from plimsoll.encoder.pooling import RowForm
from plimsoll.encoder.token_spans import TokenSpans
from plimsoll.encoder.tokenizer import TokenizedText
from plimsoll.encoder.traits import Traits
from plimsoll.encoder.weight_sizes import WeightSizes
from plimsoll.errors import EncodeMemoryError, PlimsollError, TokenIdsError
from plimsoll.machine.memory import MemoryMonitor
from plimsoll.models.pool import ModelPool
from plimsoll.models.slot import ModelSlot
from plimsoll.serving.control_loop import Monitors
from plimsoll.serving.gate import AdmissionGate, RequestPermit
from plimsoll.telemetry.metrics import Telemetry
from plimsoll.telemetry.tracing import RequestTracer

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


class FakeTokenizer:
    """Ids are letters, up to 127."""

    def decode(self, ids: Sequence[int], *, skips_special: bool) -> str:
        """The letters."""
        if any(each > 127 for each in ids):
            raise TokenIdsError("no letter")
        return "".join(map(chr, ids))

    def text_of(self, ids: Sequence[int]) -> str:
        """The letters."""
        return self.decode(ids, skips_special=False)


class FakeModel:
    """Encodes when it is let; keeps every run that it was given."""

    tokenizer = FakeTokenizer()

    weights_bytes = 0
    sizes = WeightSizes(weights_bytes=0, layer_bytes=0, n_layers=1)

    def __init__(self, name: str = "fake") -> None:
        self.traits = fake_traits(name)
        self.runs: list[list[np.ndarray]] = []
        self.encoding = threading.Event()  # set when a run has arrived
        self.released = threading.Event()  # runs wait for it
        self.released.set()
        self.n_releases = 0
        self.release_error: Exception | None = None  # what giving memory back ends in
        self.releasing = threading.Event()
        self.release_gate = threading.Event()  # giving memory back waits for it
        self.release_gate.set()
        self.closing = threading.Event()
        self.close_gate = threading.Event()  # closing waits for it
        self.close_gate.set()
        self.closed = threading.Event()
        self.error: Exception | None = None
        self.damage: PlimsollError | None = None  # of its files
        self.cuts: list[str] = []

    def tokenize(self, texts: Sequence[str], input_type: str | None) -> list[TokenizedText]:
        """One token a word, and one at either end."""
        limit = self.traits.token_limit
        tokenized = []
        for text in texts:
            words = [9 if word == NOT_FINITE_WORD else 10 + len(word) for word in text.split()]
            ids = np.array([1, *words, 2], np.int64)
            tokenized.append(TokenizedText(ids[:limit], len(ids)))
        return tokenized

    def n_empty_tokens(self, input_type: str | None) -> int:
        """The two ends."""
        return self.tokenize([""], input_type)[0].n_tokens

    def tokenize_steps(
        self, texts: Sequence[str], input_type: str | None, cut: str = "end"
    ) -> Iterator[list[TokenizedText]]:
        """One text a step; which side of a long one is cut, `cuts` notes."""
        self.cuts.append(cut)
        for text in texts:
            yield self.tokenize([text], input_type)

    def token_spans_steps(
        self, texts: Sequence[str], input_type: str | None, *, with_ends: bool
    ) -> Iterator[list[TokenSpans]]:
        """The letters of each text, one text a step."""
        for text in texts:
            source = text.encode()
            starts = np.arange(len(source))
            ids = np.frombuffer(source, np.uint8).astype(np.uint32)
            ends = ((1, "[1]"), (2, "[2]")) if with_ends else None
            yield [TokenSpans(source, ids, starts, starts + 1, ends)]

    def id_steps(
        self, texts: Sequence[Sequence[int]], input_type: str | None, cut: str = "end"
    ) -> Iterator[list[TokenizedText]]:
        """One text a step, its ids as they come."""
        for ids in texts:
            whole = np.array([1, *ids, 2], np.int64)
            yield [TokenizedText(whole[: self.traits.token_limit], len(whole))]

    def run_bytes(self, lengths: Sequence[int], **options: object) -> int:
        """A hundred a token."""
        return 100 * sum(lengths)

    def encode(self, texts: Sequence[np.ndarray], **options: object) -> np.ndarray:
        """Sums over tokens, NaN for the poison."""
        assert not self.closed.is_set(), "a closed model was asked to encode"
        self.runs.append(list(texts))
        self.encoding.set()
        assert self.released.wait(DEADLINE_S), "the model was not released"
        if self.error is not None:
            if isinstance(self.error, EncodeMemoryError):  # each failure is an error of its own
                raise EncodeMemoryError(*self.error.args)
            raise self.error
        rows = [[len(ids), ids.sum(), ids.max(), np.nan if 9 in ids else 1.0] for ids in texts]
        return np.array(rows, np.float64)

    def token_states(self, texts: Sequence[np.ndarray], **options: object) -> list[np.ndarray]:
        """A row a token, of the text's own values."""
        return [
            np.tile(row, (len(ids), 1)).astype(np.float32)
            for ids, row in zip(texts, self.encode(texts, **options), strict=True)
        ]

    def finish(self, vectors: np.ndarray, dimensions: int, form: RowForm = "unit") -> np.ndarray:
        """Cut and normalise."""
        cut = vectors[:, :dimensions]
        if form == "pooled":
            return cut.astype(np.float32)
        return (cut / np.linalg.norm(cut, axis=1, keepdims=True)).astype(np.float32)

    def check_unchanged(self) -> None:
        """Fail as a test says."""
        if self.damage is not None:
            raise self.damage

    def release_memory(self) -> None:
        """Note it."""
        self.n_releases += 1
        self.releasing.set()
        assert self.release_gate.wait(DEADLINE_S), "the model was not released"
        if self.release_error is not None:
            raise self.release_error

    def close(self) -> None:
        """Wait until let, then note it."""
        self.closing.set()
        assert self.close_gate.wait(DEADLINE_S), "the model was not let close"
        self.closed.set()


class FakeOpener:
    """Opens fake models when it is let; fails with `errors` first, one a try."""

    def __init__(self, *errors: PlimsollError) -> None:
        self.errors = list(errors)
        self.models: list[FakeModel] = []
        self.next_model = FakeModel()
        self.n_tries = 0
        self.look_errors: list[PlimsollError] = []
        self.n_looks = 0
        self.file_is_new = False
        self.change: str | None = None  # of the file, since it was read
        self.opening = threading.Event()
        self.released = threading.Event()
        self.released.set()

    def look(self) -> None:
        """Find nothing wrong, or the next of `look_errors`."""
        self.n_looks += 1
        if self.look_errors:
            raise self.look_errors.pop(0)

    def has_new_file(self) -> bool:
        """As a test says."""
        return self.file_is_new

    def source_change(self) -> str | None:
        """As a test says."""
        return self.change

    def open(self, progress: Callable[[int, int, str], None]) -> FakeModel:
        """Wait until released, then fail or open."""
        self.n_tries += 1
        self.opening.set()
        progress(25, 100, "write")
        assert self.released.wait(DEADLINE_S), "the opener was not released"
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
) -> ModelSlot:
    """A slot over fake models."""
    return ModelSlot(
        names or ("fake",),
        opener,
        (telemetry or Telemetry("test")).models,
        idle_unload_s=idle_unload_s,
        clock=clock or FakeClock(),
    )


# As the made-up server is called by TestClient, and by tests that write heads themselves.
TEST_HOSTS = "testserver,test"
TEST_ACCESS = AccessRules(hosts=AllowedHosts(TEST_HOSTS.split(",")))


class FakeServer:
    """The whole of the API over fake models; `app` needs no lifespan, `close` ends its threads."""

    def __init__(
        self,
        opener: FakeOpener,
        *,
        load_wait_s: float | None = DEADLINE_S,
        new_permit: Callable[[AdmissionGate], RequestPermit] = RequestPermit,
        body_limit_bytes: int = 1 << 20,
        body_timeout_s: float = DEADLINE_S,
        monitor: MemoryMonitor | None = None,
        tracer: RequestTracer | None = None,
        access: AccessRules = TEST_ACCESS,
        accept_token_ids: bool = False,
        json_limits: JSONLimits | None = None,
        clock: Callable[[], float] = monotonic,
        **options: float,
    ) -> None:
        """`options`: of build_core."""
        self.telemetry = Telemetry("test")
        self.opener = opener
        self.slot = ModelSlot(("fake",), opener, self.telemetry.models, idle_unload_s=0)
        models = ModelPool([self.slot], max_open=1, load_wait_s=load_wait_s)
        self.core = build_core(
            models,
            Monitors(monitor or MemoryMonitor()),
            self.telemetry,
            clock=clock,
            **options,
        )
        self.core.start()
        self._data = TemporaryDirectory()
        self.corpora = build_corpora(Path(self._data.name), self.core, self.telemetry)
        self.links = build_links(None, self.corpora, self.core, self.telemetry, {})
        self.migrations, survey = build_migrations(
            self.corpora, self.links, self.core, self.telemetry
        )
        self.parsing = ThreadPoolExecutor(1, thread_name_prefix="parse")
        self.app = build_application(
            self.core,
            self.corpora,
            self.links,
            self.migrations,
            survey,
            self.telemetry,
            parsing=self.parsing,
            body_limit_bytes=body_limit_bytes,
            body_timeout_s=body_timeout_s,
            access=access,
            accept_token_ids=accept_token_ids,
            json_limits=json_limits,
            tracer=tracer,
            new_permit=lambda: new_permit(self.core.gate),
        )
        self.refusals = self.app.state.refusals

    @property
    def model(self) -> FakeModel:
        """The one that is open, or the one that will be."""
        return self.opener.models[-1] if self.opener.models else self.opener.next_model

    def close(self) -> None:
        """End the threads."""
        self.parsing.shutdown()
        self.core.stop()
        self.corpora.close()
        self._data.cleanup()


def metric(page: str, series: str) -> float:
    """Value of one series in a page of Prometheus metrics; 0 where it is not there yet."""
    for line in page.splitlines():
        if line.startswith(f"{series} "):
            return float(line.split()[-1])
    return 0.0
