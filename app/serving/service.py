"""The use cases behind the routes: embed texts, say how the server is.

Knows no HTTP. Texts go through tokenizing, the executor's waves, pooling, cut and norm;
one bad text never fails its neighbours.
"""

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from app.encoder.model import EmbeddingModel, Traits
from app.encoder.tokenizer import TokenizedText
from app.errors import (
    EmptyTextError,
    InvalidRequestError,
    NonFiniteError,
    RequestError,
    TextTooLongError,
)
from app.serving.executor import WaveExecutor
from app.serving.slot import ModelSlot
from app.telemetry import Telemetry

# Tokenizing is done this many texts at a time, so that a long list starts to run early
# and never stands in memory as tokens twice.
TOKENIZE_TEXTS = 256
# Above this share of the budget the weights cannot stay resident beside everything else.
RESIDENT_WEIGHTS_RATIO = 0.5


@dataclass(frozen=True)
class EmbedTask:
    """What to embed and how; `dimensions` None means all of the model's."""

    texts: Sequence[str]
    input_type: str | None = None
    dimensions: int | None = None
    truncate: bool = True


@dataclass(frozen=True)
class Truncation:
    """A text that was cut: how many tokens it has and how many went in."""

    index: int
    tokens: int
    kept: int


@dataclass(frozen=True)
class TextFailure:
    """Why a text has no vector."""

    index: int
    code: str
    message: str


@dataclass
class Embeddings:
    """The answer: `vectors[i]` is None exactly when `failures` holds index i."""

    traits: Traits
    input_type: str | None
    dimensions: int
    fingerprint: str
    warnings: list[str]
    vectors: list[np.ndarray | None] = field(default_factory=list)  # float32 (dimensions,)
    truncated: list[Truncation] = field(default_factory=list)
    failures: list[TextFailure] = field(default_factory=list)
    n_tokens: int = 0


class EmbeddingService:
    """Embeds texts with the slot's model. Owns the tokenizing thread."""

    def __init__(
        self, slot: ModelSlot, executor: WaveExecutor, telemetry: Telemetry, *, budget_bytes: int
    ) -> None:
        self.slot = slot
        self._executor = executor
        self._telemetry = telemetry
        self._budget_bytes = budget_bytes
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokenize")

    async def embed(self, task: EmbedTask) -> Embeddings:
        """Embed every text of `task`.

        Raises InvalidRequestError for options the model does not have, ModelLoadingError and
        other ModelErrors while there is no model.
        """
        if not task.texts:
            raise InvalidRequestError(
                "input is an empty list; send at least one text", param="input"
            )
        async with self.slot.lease() as model:
            traits = model.traits
            dimensions = traits.check_dimensions(task.dimensions)
            result = Embeddings(
                traits=traits,
                input_type=task.input_type,
                dimensions=dimensions,
                fingerprint=traits.fingerprint(dimensions, task.input_type),
                warnings=traits.warnings(dimensions, task.input_type),
            )
            for start, texts in _batches(task.texts, TOKENIZE_TEXTS):
                await self._embed_batch(model, task, start, texts, result)
        self._count(result)
        return result

    def close(self) -> None:
        """End the tokenizing thread."""
        self._tokenizing.shutdown()

    async def _embed_batch(
        self,
        model: EmbeddingModel,
        task: EmbedTask,
        start: int,
        texts: Sequence[str],
        result: Embeddings,
    ) -> None:
        loop = asyncio.get_running_loop()
        with self._telemetry.stage("tokenize"):
            tokenized, empty = await loop.run_in_executor(
                self._tokenizing, _tokenize, model, texts, task.input_type
            )
        accepted: dict[int, TokenizedText] = {}
        for index, text in enumerate(tokenized, start):
            failure = _refusal(text, empty, model.traits.token_limit, truncate=task.truncate)
            if failure is not None:
                result.failures.append(TextFailure(index, failure.code, str(failure)))
                continue
            accepted[index] = text
            result.n_tokens += len(text.ids)
            if text.truncated:
                result.truncated.append(Truncation(index, text.n_tokens, len(text.ids)))
        rows = await self._executor.encode(
            model, [text.ids for text in accepted.values()], drop_pages=self._drops_pages(model)
        )
        result.vectors.extend([None] * len(tokenized))
        if rows:
            with self._telemetry.stage("pool"):
                vectors = model.finish(np.stack(rows), result.dimensions)
            for index, vector in zip(accepted, vectors, strict=True):
                if np.isfinite(vector).all():
                    result.vectors[index] = vector
                else:
                    error = NonFiniteError("the model's values for this text are not finite")
                    result.failures.append(TextFailure(index, "non_finite", str(error)))

    def _drops_pages(self, model: EmbeddingModel) -> bool:
        return model.weights_bytes > RESIDENT_WEIGHTS_RATIO * self._budget_bytes

    def _count(self, result: Embeddings) -> None:
        self._telemetry.texts.inc(len(result.vectors) - len(result.failures))
        self._telemetry.tokens.inc(result.n_tokens)
        self._telemetry.truncated.inc(len(result.truncated))
        for failure in result.failures:
            self._telemetry.errors.labels(failure.code).inc()


def _tokenize(
    model: EmbeddingModel, texts: Sequence[str], input_type: str | None
) -> tuple[list[TokenizedText], TokenizedText]:
    """Tokens of each text, and of no text at all with the same prefix."""
    *tokenized, empty = model.tokenize([*texts, ""], input_type)
    return tokenized, empty


def _refusal(
    text: TokenizedText, empty: TokenizedText, limit: int, *, truncate: bool
) -> RequestError | None:
    if text.n_tokens <= empty.n_tokens:
        return EmptyTextError(
            "the text has no tokens: it is empty, or only spaces or control characters"
        )
    if text.n_tokens > limit and not truncate:
        return TextTooLongError(
            f"the text has {text.n_tokens} tokens and the limit is {limit}; shorten it or set "
            "truncate to true"
        )
    return None


def _batches(texts: Sequence[str], size: int) -> Iterator[tuple[int, Sequence[str]]]:
    for start in range(0, len(texts), size):
        yield start, texts[start : start + size]
