"""The use cases of tokens by themselves: texts to tokens with their places, and ids to texts.

They use the default model's tokenizer and none of its weights; the model has to be open all the
same.
"""

from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeAlias

from plimsoll.encoder.model import EmbeddingModel
from plimsoll.encoder.token_spans import TokenSpans
from plimsoll.models.pool import ModelPool
from plimsoll.policy.costs import decoding_demand, token_spans_demand
from plimsoll.serving.gate import RequestPermit
from plimsoll.serving.threads import run_in

TextTokens: TypeAlias = TokenSpans
"""The tokens of a text with their places, for dialects: those know no encoder."""


class TokenService:
    """Tells tokens. thread: tokenizes.

    Every use case takes the request's permit, and raises OverloadError, TooLargeError and
    ModelErrors.
    """

    def __init__(self, models: ModelPool, thread: Executor) -> None:
        self._models = models
        self._thread = thread

    async def spans(
        self,
        texts: Sequence[str],
        input_type: str | None,
        permit: RequestPermit,
        *,
        with_ends: bool,
    ) -> list[TextTokens]:
        """Every token of each text, uncut, the task's prefix in front.

        with_ends: with the special tokens that the model gets around a text.
        """
        async with self._leased(permit) as model:
            await permit.renew(token_spans_demand(texts))
            steps = model.token_spans_steps(texts, input_type, with_ends=with_ends)
            found: list[TextTokens] = []
            # A step at a time: others want the thread too.
            while (finished := await run_in(self._thread, next, steps, None)) is not None:
                found += finished
            return found

    async def decode(
        self, ids: Sequence[Sequence[int]], permit: RequestPermit, *, skips_special: bool
    ) -> list[str]:
        """The words of each list of ids as a text. Raises TokenIdsError besides."""
        async with self._leased(permit) as model:
            await permit.renew(decoding_demand(ids))
            decode = partial(model.tokenizer.decode, skips_special=skips_special)
            # A list at a time: others want the thread too.
            return [await run_in(self._thread, decode, each) for each in ids]

    async def texts_of(
        self, inputs: Sequence[str | Sequence[int]], permit: RequestPermit
    ) -> list[str]:
        """Each input as a text: itself, or the one that its ids come from.

        Raises TokenIdsError besides.
        """
        if all(isinstance(each, str) for each in inputs):
            return [each for each in inputs if isinstance(each, str)]
        async with self._leased(permit) as model:
            await permit.renew(decoding_demand([x for x in inputs if not isinstance(x, str)]))
            text_of = model.tokenizer.text_of
            return [
                each if isinstance(each, str) else await run_in(self._thread, text_of, each)
                for each in inputs
            ]

    @asynccontextmanager
    async def _leased(self, permit: RequestPermit) -> AsyncIterator[EmbeddingModel]:
        permit.enter(asks_breaker=True)  # before a model opens into memory that is short
        async with self._models.lease() as model:
            yield model
