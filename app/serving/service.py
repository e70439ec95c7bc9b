"""The use cases behind the routes: embed texts, explain what would happen to them.

Knows no HTTP. Texts go through tokenizing, admission, the executor's runs, pooling, cut and norm;
one bad text never fails its neighbours. Where the model cannot answer, a client that can use them
gets BM25's sparse vectors, which say so.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, asynccontextmanager
from typing import TypeVar

import numpy as np

from app.encoder.model import EmbeddingModel
from app.errors import (
    BreakerOpenError,
    EncodeMemoryError,
    InvalidRequestError,
    ModelLoadingError,
    NonFiniteError,
)
from app.memory.breaker import MemoryCircuitBreaker, Verdict
from app.memory.resources import ResourceManager
from app.retrieval.bm25 import BM25Encoder
from app.serving.admission import (
    BATCH_TEXTS,
    MOST_STEMS,
    Decision,
    Demand,
    Outcome,
    Ticket,
    held_bytes,
    sparse_demand,
)
from app.serving.executor import RunExecutor
from app.serving.fallback import with_fallback
from app.serving.gate import AdmissionGate
from app.serving.runs import WINDOW_TEXTS
from app.serving.tasks import (
    Degraded,
    Embeddings,
    EmbedTask,
    Explanation,
    SparseEmbeddings,
    TextFailure,
)
from app.serving.tokens import RequestTokens, count_tokens, tokenize
from app.telemetry import Telemetry

T = TypeVar("T")


class EmbeddingService:
    """Embeds texts. `thread`: where they are tokenized and their words are counted.

    Every use case takes `releases`, which its caller closes when the reply has been sent: until
    then what it holds counts against the budget.
    """

    def __init__(
        self,
        models: ResourceManager[EmbeddingModel],
        executor: RunExecutor,
        gate: AdmissionGate,
        breaker: MemoryCircuitBreaker,
        telemetry: Telemetry,
        thread: Executor,
        *,
        step: Callable[[], int] = lambda: 0,
    ) -> None:
        """`step`: where on the memory ladder the server stands."""
        self._models = models
        self._executor = executor
        self._gate = gate
        self._breaker = breaker
        self._telemetry = telemetry
        self._thread = thread
        self._step = step
        self._bm25 = BM25Encoder(most_stems=MOST_STEMS)

    async def embed(self, task: EmbedTask, releases: ExitStack) -> Embeddings | SparseEmbeddings:
        """Embed every text of `task`, or encode it with BM25 where it allows that.

        Raises InvalidRequestError for options the model does not have, OverloadError and
        TooLargeError for what is not admitted, ModelErrors while there is no model.
        """
        _check_texts(task)
        if task.encoder == "bm25":
            return await self._sparse(task, releases, None)
        return await with_fallback(
            task.fallback,
            releases,
            self._telemetry,
            lambda attempt: self._dense(task, attempt),
            lambda degraded: self._sparse(task, releases, degraded),
        )

    async def explain(self, task: EmbedTask) -> Explanation:
        """What would become of `task` now; nothing runs. Raises as `embed` does for its options."""
        _check_texts(task)
        demand = Demand(0, 0)
        lengths: list[int] = []
        loading_retry_s: float | None = None
        try:
            demand, lengths = await self._foresee(task)
        except ModelLoadingError as error:
            loading_retry_s = error.retry_after_s
        decision, snapshot = self._gate.decide(demand), self._breaker.snapshot()
        outcome, retry_after_s = decision.outcome.value, decision.retry_after_s
        if task.encoder == "dense" and self._breaker_refuses(decision):
            outcome, retry_after_s = "breaker_open", snapshot.retry_after_s or retry_after_s
        elif loading_retry_s is not None:
            outcome, retry_after_s = "model_loading", loading_retry_s
        admission = self._gate.admission
        return Explanation(
            outcome=outcome,
            step=self._step(),
            n_texts=len(task.texts),
            n_tokens=demand.n_tokens,
            longest_tokens=max(lengths, default=0),
            predicted_bytes=demand.peak_bytes,
            predicted_s=decision.predicted_s,
            headroom_bytes=decision.headroom_bytes,
            largest_bytes=decision.largest_bytes,
            queue_tokens=admission.queue_tokens,
            tokens_per_s=admission.tokens_per_s,
            retry_after_s=retry_after_s,
        )

    async def _foresee(self, task: EmbedTask) -> tuple[Demand, list[int]]:
        """What `task` would take, and the tokens of each text that would run."""
        if task.encoder == "bm25":
            return _words_demand(task), []
        async with self._models.lease(task.model) as model:
            model.traits.check_dimensions(task.dimensions)
            lengths = await count_tokens(model, task, self._thread)
            return _demand(model, task, lengths), lengths

    def _breaker_refuses(self, decision: Decision) -> bool:
        """Whether it would, in the order of `_dense`: a full queue has refused before it."""
        is_asked = decision.outcome is not Outcome.QUEUE_FULL
        return is_asked and self._breaker.verdict is Verdict.REFUSED

    async def _dense(self, task: EmbedTask, releases: ExitStack) -> Embeddings:
        self._models.find(task.model)
        self._gate.check_queue()
        # The breaker comes before the model, which would open into the memory that is short.
        async with self._past_breaker(), self._models.lease(task.model) as model:
            dimensions = model.traits.check_dimensions(task.dimensions)
            tokens = await self._tokenize(model, task)
            demand = _demand(model, task, tokens.lengths)
            with self._telemetry.stage("admission"):
                ticket = await self._gate.enter(demand)
            releases.callback(self._gate.leave, ticket)
            result = Embeddings(
                traits=model.traits,
                input_type=task.input_type,
                dimensions=dimensions,
                fingerprint=model.traits.fingerprint(dimensions, task.input_type),
                warnings=model.traits.warnings(dimensions, task.input_type),
                vectors=[None] * len(task.texts),
                truncated=tokens.truncated,
                failures=tokens.failures,
                n_tokens=tokens.n_tokens,
            )
            await self._encode(model, tokens, result, ticket.note_done)
        self._count(result)
        return result

    @asynccontextmanager
    async def _past_breaker(self) -> AsyncIterator[None]:
        """Let a request through the breaker, and tell it what became of the request."""
        admittance = self._breaker.admit()
        if admittance.verdict is Verdict.REFUSED:
            raise BreakerOpenError(
                f"memory failed or ran high; trying again in {admittance.retry_after_s:.0f} s",
                retry_after_s=admittance.retry_after_s,
            )
        try:
            yield
            self._breaker.record_success(admittance)
        except EncodeMemoryError:
            self._breaker.record_failure(admittance)
            raise
        finally:
            self._breaker.probe_dropped(admittance)

    async def _tokenize(self, model: EmbeddingModel, task: EmbedTask) -> RequestTokens:
        """Ids of the texts, their memory reserved as they come until the request is admitted.

        The first of them wait for room; the others do not, for by then something is held, and two
        such requests would wait for each other.
        """
        ticket: Ticket | None = None

        async def reserve(lengths: Sequence[int]) -> None:
            nonlocal ticket
            if ticket is None:
                ticket = await self._gate.enter(_demand(model, task, lengths))
                meanwhile.callback(self._gate.leave, ticket)
            elif (n_bytes := _held_bytes(model, task, lengths)) > ticket.demand.held_bytes:
                self._gate.grow(ticket, n_bytes)

        with ExitStack() as meanwhile, self._telemetry.stage("tokenize"):
            return await tokenize(model, task, self._thread, reserve)

    async def _encode(
        self,
        model: EmbeddingModel,
        tokens: RequestTokens,
        result: Embeddings,
        on_row: Callable[[int], None],
    ) -> None:
        """Fill in the vectors, a batch at a time."""
        for batch in _batches(list(tokens.ids), BATCH_TEXTS):
            rows = await self._executor.encode(
                model, [tokens.ids.pop(index) for index in batch], on_row
            )
            with self._telemetry.stage("pool"):
                vectors = model.finish(np.stack(rows), result.dimensions)
            for index, vector in zip(batch, vectors, strict=True):
                if np.isfinite(vector).all():
                    result.vectors[index] = vector
                else:
                    error = NonFiniteError("the model's values for this text are not finite")
                    result.failures.append(TextFailure(index, "non_finite", str(error)))

    async def _sparse(
        self, task: EmbedTask, releases: ExitStack, degraded: Degraded | None
    ) -> SparseEmbeddings:
        demand = _words_demand(task)
        # One that stands in for vectors has waited already.
        ticket = self._gate.enter_now(demand) if degraded else await self._gate.enter(demand)
        releases.callback(self._gate.leave, ticket)
        encode = (
            self._bm25.encode_queries
            if task.input_type == "search_query"
            else self._bm25.encode_documents
        )
        vectors = []
        for batch in _batches(task.texts, BATCH_TEXTS):
            vectors += await asyncio.get_running_loop().run_in_executor(self._thread, encode, batch)
        return SparseEmbeddings(self._bm25.fingerprint, vectors, degraded)

    def _count(self, result: Embeddings) -> None:
        self._telemetry.texts.inc(len(result.vectors) - len(result.failures))
        self._telemetry.tokens.inc(result.n_tokens)
        self._telemetry.truncated.inc(len(result.truncated))
        for failure in result.failures:
            self._telemetry.errors.labels(failure.code).inc()


def _check_texts(task: EmbedTask) -> None:
    if not task.texts:
        raise InvalidRequestError("input is an empty list; send at least one text", param="input")


def _demand(model: EmbeddingModel, task: EmbedTask, lengths: Sequence[int]) -> Demand:
    longest = max(lengths, default=0)
    return Demand(
        n_tokens=sum(lengths),
        held_bytes=_held_bytes(model, task, lengths),
        run_bytes=model.wave_bytes([longest]) if longest else 0,
        waiting_tokens=sum(lengths[:WINDOW_TEXTS]),
    )


def _held_bytes(model: EmbeddingModel, task: EmbedTask, lengths: Sequence[int]) -> int:
    hidden = model.traits.dimensions
    return held_bytes(lengths, hidden=hidden, dimensions=task.dimensions or hidden)


def _words_demand(task: EmbedTask) -> Demand:
    """Of BM25, which may pass the memory line whether it was asked for or stands in.

    Else who asks for little would be refused where those who ask for more are answered.
    """
    return sparse_demand(task.texts, is_fallback=True)


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
