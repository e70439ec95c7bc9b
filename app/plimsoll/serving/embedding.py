"""The use cases behind the routes: embed texts, explain what would happen to them.

Knows no HTTP. Texts go through tokenizing, admission, the executor's runs, pooling, cut and norm;
one bad text never fails its neighbours. Where the model cannot answer, a client that can use them
gets BM25's sparse vectors, which say so.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import replace
from time import perf_counter
from typing import Protocol, TypeVar

import numpy as np

from plimsoll.encoder.model import EmbeddingModel
from plimsoll.encoder.pooling import RowForm
from plimsoll.encoder.traits import Traits
from plimsoll.errors import (
    EncodeMemoryError,
    InvalidRequestError,
    ModelLoadingError,
    NonFiniteError,
)
from plimsoll.models.pool import ModelPool
from plimsoll.policy.costs import (
    BATCH_TEXTS,
    IDS_STEP_BYTES,
    NOTHING,
    SPARSE_TERM_BYTES,
    Demand,
    TextSizes,
    dense_demand,
    sparse_demand,
    token_states_bytes,
)
from plimsoll.policy.decision import Outcome
from plimsoll.policy.priority import Priority, priority_of
from plimsoll.serving.clients import charge_client
from plimsoll.serving.fallback import degraded_by, with_fallback
from plimsoll.serving.gate import AdmissionGate, RequestPermit
from plimsoll.serving.rows import Row
from plimsoll.serving.tasks import (
    Embeddings,
    EmbedTask,
    Explanation,
    SparseEmbeddings,
    TextFailure,
)
from plimsoll.serving.tokens import RequestTokens, count_tokens, tokenize
from plimsoll.serving.words import WordsService
from plimsoll.telemetry.current_request import current_request
from plimsoll.telemetry.pressure import PressureMetrics
from plimsoll.telemetry.requests import RequestMetrics

T = TypeVar("T")


class TextEncoder(Protocol):
    """Gives vectors for texts: the engine's executor, or one with a cache before it."""

    async def encode(
        self,
        model: EmbeddingModel,
        texts: Sequence[np.ndarray],
        dimensions: int,
        on_row: Callable[[int], None],
        priority: Priority,
        form: RowForm = "unit",
    ) -> list[Row]:
        """A row of each text's ids, in order; `on_row` is told a text's tokens as it is done."""


class EmbeddingService:
    """Embeds texts. texts_thread: tokenizes. words_thread: counts words, for longer at a time.

    Every use case takes the request's permit, which its caller leaves when the reply has been
    sent: until then what it holds counts against the budget.
    """

    def __init__(
        self,
        models: ModelPool,
        encoder: TextEncoder,
        gate: AdmissionGate,
        metrics: RequestMetrics,
        pressure: PressureMetrics,
        texts_thread: Executor,
        words_thread: Executor,
    ) -> None:
        self._models = models
        self._encoder = encoder
        self._gate = gate
        self._metrics = metrics
        self._pressure = pressure
        self._thread = texts_thread
        self._words = WordsService(words_thread)

    async def embed(self, task: EmbedTask, permit: RequestPermit) -> Embeddings | SparseEmbeddings:
        """Embed every text of `task`, or encode it with BM25 where it asks for that or allows it.

        Raises as `embed_dense` does.
        """
        if task.encoder == "bm25":
            return await self.embed_sparse(task, permit)
        _check_texts(task)
        return await with_fallback(
            task.fallback,
            permit,
            self._pressure,
            lambda: self.embed_dense(task, permit),
            lambda refusal: self._words.encode(task, permit, degraded_by(refusal)),
        )

    async def embed_sparse(
        self, task: EmbedTask, permit: RequestPermit, *, term_bytes: int = SPARSE_TERM_BYTES
    ) -> SparseEmbeddings:
        """Encode every text of `task` with BM25, without a model.

        term_bytes: what a word takes in the reply.
        Raises InvalidRequestError, OverloadError and TooLargeError.
        """
        _check_texts(task)
        return await self._words.encode(task, permit, term_bytes=term_bytes)

    async def embed_dense(self, task: EmbedTask, permit: RequestPermit) -> Embeddings:
        """Embed every text of `task` with the model, or not at all.

        Raises InvalidRequestError for options the model does not have, OverloadError and
        TooLargeError for what is not admitted, ModelErrors while there is no model.
        """
        (answer,) = await self.embed_in_turn([task], permit)
        return answer

    async def embed_in_turn(
        self, tasks: Sequence[EmbedTask], permit: RequestPermit
    ) -> list[Embeddings]:
        """Embed one list after the other, for one request and with one model: that of the first.

        Ends after a list of which no text has a vector. Raises as `embed_dense` does.
        """
        for task in tasks:
            _check_texts(task)
        name = tasks[0].model
        self._note_model(name)
        # The breaker comes before the model, which would open into the memory that is short.
        n_texts = max(task.n_texts for task in tasks)  # each has a token at least
        permit.enter(
            asks_breaker=True,
            priority=priority_of(n_texts, tasks[0].priority),
            size=sum(task.size for task in tasks),
        )
        answers: list[Embeddings] = []
        keep_alive_s, start_s = tasks[0].keep_alive_s, perf_counter()
        async with _failure_told(permit), self._models.lease(name, keep_alive_s) as model:
            loading_s = perf_counter() - start_s
            for task in tasks:
                if answers:
                    permit.settle()  # its vectors are needed until all have theirs
                answers.append(await self._embed_with(model, task, permit))
                answers[-1].loading_s = loading_s
                if len(answers[-1].failures) == task.n_texts:
                    break
        if any(answer.n_tokens for answer in answers):
            permit.succeeded()  # where nothing has run, nothing is proven
        for answer in answers:
            self._count(answer)
        return answers

    async def open_model(
        self, name: str | None, permit: RequestPermit, keep_alive_s: float | None
    ) -> None:
        """Open a model without a text for it; `keep_alive_s` of 0 closes it where it is idle.

        Raises as `embed_dense` does.
        """
        self._note_model(name)
        if keep_alive_s == 0 and not self._models.find(name).is_open:
            return
        permit.enter(asks_breaker=keep_alive_s != 0, priority=Priority.INTERACTIVE)
        async with self._models.lease(name, keep_alive_s):
            pass

    async def _embed_with(
        self, model: EmbeddingModel, task: EmbedTask, permit: RequestPermit
    ) -> Embeddings:
        dimensions = model.traits.check_dimensions(task.dimensions)
        with self._metrics.stage("tokenize"):
            tokens = await self._tokenize(model, task, permit)
        demand = _demand(model, task, TextSizes.of(tokens.lengths))
        if task.form == "tokens":
            states_bytes = token_states_bytes(tokens.n_tokens, model.traits.dimensions)
            demand = replace(demand, held_bytes=demand.held_bytes + states_bytes)
        with self._metrics.stage("admission"):
            await permit.renew(demand)
        charge_client(tokens.n_tokens)
        result = Embeddings(
            traits=model.traits,
            input_type=task.input_type,
            dimensions=dimensions,
            fingerprint=model.traits.fingerprint(dimensions, task.input_type),
            warnings=model.traits.warnings(dimensions, task.input_type),
            vectors=[None] * task.n_texts,
            truncated=tokens.truncated,
            failures=tokens.failures,
            n_tokens=tokens.n_tokens,
        )
        await self._encode(model, tokens, result, permit, demand.priority, task.form)
        return result

    async def explain(self, task: EmbedTask, permit: RequestPermit) -> Explanation:
        """What would become of `task` now; nothing runs. Raises as `embed` does for its options."""
        _check_texts(task)
        demand, lengths = NOTHING, list[int]()
        loading_retry_s: float | None = None
        try:
            demand, lengths = await self._foresee(task, permit)
        except ModelLoadingError as error:
            loading_retry_s = error.retry_after_s
        decision = permit.explain(demand, asks_breaker=task.encoder == "dense")
        outcome, retry_after_s = decision.outcome.value, decision.retry_after_s
        if loading_retry_s is not None and outcome != "breaker_open":
            outcome, retry_after_s = "model_loading", loading_retry_s
        governor = self._gate.governor
        return Explanation(
            outcome=outcome,
            step=governor.step,
            n_texts=task.n_texts,
            n_tokens=demand.n_tokens,
            longest_tokens=max(lengths, default=0),
            predicted_bytes=demand.peak_bytes,
            predicted_s=decision.predicted_s,
            headroom_bytes=decision.headroom_bytes,
            largest_bytes=decision.largest_bytes,
            queue_tokens=governor.admission.backlog.tokens_before(demand.priority, demand.n_tokens),
            tokens_per_s=governor.admission.backlog.tokens_per_s,
            retry_after_s=retry_after_s,
        )

    async def traits(self, name: str | None, permit: RequestPermit) -> Traits:
        """What a served model says of itself; None: the default. It is opened where it never was.

        Raises UnknownModelError, BreakerOpenError and ModelErrors.
        """
        slot = self._models.find(name)
        if slot.traits is None:
            permit.enter(asks_breaker=True)  # before a model opens into memory that is short
            async with self._models.lease(name) as model:
                return model.traits
        return slot.traits

    async def _foresee(self, task: EmbedTask, permit: RequestPermit) -> tuple[Demand, list[int]]:
        """What `task` would take, and the tokens of each text that would run."""
        if task.encoder == "bm25":
            return sparse_demand(task.texts), []
        self._note_model(task.model)
        told = permit.explain(NOTHING, asks_breaker=True)
        if told.outcome is Outcome.BREAKER_OPEN and not self._models.find(task.model).is_open:
            return NOTHING, []  # nor would the request open it
        async with self._models.lease(task.model) as model:
            model.traits.check_dimensions(task.dimensions)
            lengths = await count_tokens(model, task, self._thread)
            return _demand(model, task, TextSizes.of(lengths)), lengths

    async def _tokenize(
        self, model: EmbeddingModel, task: EmbedTask, permit: RequestPermit
    ) -> RequestTokens:
        """Ids of the texts, their memory reserved as they come.

        Everything else that the request takes is reserved at once when all are there: two
        requests that each held a half of it would wait for each other.
        """
        sizes = TextSizes()
        reserved_bytes = 0

        async def reserve(lengths: Sequence[int]) -> None:
            nonlocal reserved_bytes
            sizes.add(lengths)
            is_step = sizes.ids_bytes >= reserved_bytes + IDS_STEP_BYTES
            if is_step or sizes.n_texts < task.n_texts:
                permit.check_size(_demand(model, task, sizes))  # before more is tokenized in vain
            if is_step:
                reserved_bytes = sizes.ids_bytes
                await permit.renew(Demand(0, reserved_bytes))

        return await tokenize(model, task, self._thread, reserve)

    async def _encode(
        self,
        model: EmbeddingModel,
        tokens: RequestTokens,
        result: Embeddings,
        permit: RequestPermit,
        priority: Priority,
        form: RowForm,
    ) -> None:
        """Fill in the vectors, a batch at a time."""
        for batch in _batches(list(tokens.ids), BATCH_TEXTS):
            ids = [tokens.ids.pop(index) for index in batch]
            rows = await self._encoder.encode(
                model, ids, result.dimensions, permit.note_done, priority, form
            )
            for index, vector in zip(batch, rows, strict=True):
                if np.isfinite(vector).all():
                    result.vectors[index] = vector
                else:
                    error = NonFiniteError("the model's values for this text are not finite")
                    result.failures.append(TextFailure(index, "non_finite", str(error)))

    def _note_model(self, name: str | None) -> None:
        """Say in log and metrics which model is asked for. Raises UnknownModelError."""
        slot, request = self._models.find(name), current_request()
        if request is not None:
            request.model = slot.name

    def _count(self, result: Embeddings) -> None:
        n_embedded = len(result.vectors) - len(result.failures)
        model = result.traits.name
        self._metrics.embedded(model, n_embedded, result.n_tokens, len(result.truncated))
        for failure in result.failures:
            self._metrics.failed(failure.code)


def _check_texts(task: EmbedTask) -> None:
    if not task.n_texts:
        raise InvalidRequestError("input is an empty list; send at least one text", param="input")


@asynccontextmanager
async def _failure_told(permit: RequestPermit) -> AsyncIterator[None]:
    """Tell the breaker where a request that it has let through finds no memory."""
    try:
        yield
    except EncodeMemoryError as error:
        permit.failed(error)
        raise


def _demand(model: EmbeddingModel, task: EmbedTask, sizes: TextSizes) -> Demand:
    hidden = model.traits.dimensions
    return dense_demand(
        sizes,
        model.run_bytes,
        hidden=hidden,
        dimensions=task.dimensions or hidden,
        priority=task.priority,
        encodings=task.encodings,
        echoed_bytes=task.echoed_bytes,
    )


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
