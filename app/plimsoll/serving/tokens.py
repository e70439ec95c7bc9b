"""Texts to token ids for one request, step by step beside everybody else's.

Tokenizing happens in one thread, a bounded step at a time, so that a text of megabytes neither
stands in memory as millions of tokens nor keeps a short one waiting. A single short text is
tokenized at once. Memory for the ids is reserved as they come.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np

from plimsoll.encoder.model import EmbeddingModel
from plimsoll.encoder.tokenizer import TokenizedText
from plimsoll.errors import EmptyTextError, RequestError, TextTooLongError
from plimsoll.serving.tasks import EmbedTask, TextFailure, Truncation

# A text of no more takes a quarter of a millisecond, and a thread longer to take it up.
INLINE_CHARACTERS = 1024


@dataclass
class RequestTokens:
    """Ids of the texts that run, by their index, and what is to be said of the others."""

    ids: dict[int, np.ndarray] = field(default_factory=dict)  # int64 (tokens,)
    truncated: list[Truncation] = field(default_factory=list)
    failures: list[TextFailure] = field(default_factory=list)
    n_tokens: int = 0

    @property
    def lengths(self) -> list[int]:
        """Tokens of each text that runs."""
        return [len(ids) for ids in self.ids.values()]


async def tokenize(
    model: EmbeddingModel,
    task: EmbedTask,
    thread: Executor,
    reserve: Callable[[Sequence[int]], Awaitable[None]],
) -> RequestTokens:
    """Tokenize every text of `task`.

    reserve: told the tokens of the texts that run, after each step that came to the end of a
        text; raises where there is no room for them.
    """
    found = RequestTokens()
    n_texts = 0
    lengths: list[int] = []  # of this step

    def take(text: TokenizedText, failure: RequestError | None) -> None:
        nonlocal n_texts
        _sort_in(found, n_texts, text, failure)
        n_texts += 1
        if failure is None:
            lengths.append(len(text.ids))

    async def after_step() -> None:
        await reserve(lengths)
        lengths.clear()

    await _each_text(model, task, thread, take, after_step)
    return found


async def count_tokens(model: EmbeddingModel, task: EmbedTask, thread: Executor) -> list[int]:
    """Tokens of each text of `task` that would run.

    Ids are let go as they come, so that no memory has to be reserved for them.
    """
    lengths: list[int] = []

    def take(text: TokenizedText, failure: RequestError | None) -> None:
        if failure is None:
            lengths.append(len(text.ids))

    await _each_text(model, task, thread, take, None)
    return lengths


async def _each_text(
    model: EmbeddingModel,
    task: EmbedTask,
    thread: Executor,
    take: Callable[[TokenizedText, RequestError | None], None],
    after_step: Callable[[], Awaitable[None]] | None,
) -> None:
    """Hand each text's ids to `take`, in order, with why it does not run."""
    n_empty = model.n_empty_tokens(task.input_type)
    steps = _steps(model, task)
    limit = model.traits.token_limit
    is_short = task.n_texts == 1 and sum(map(len, task.texts)) <= INLINE_CHARACTERS
    while (texts := await _next_of(steps, None if is_short else thread)) is not None:
        for text in texts:
            take(text, _refusal(text, n_empty, limit, truncate=task.truncate))
        if texts and after_step is not None:
            await after_step()


def _steps(model: EmbeddingModel, task: EmbedTask) -> Iterator[list[TokenizedText]]:
    if task.token_ids is None:
        return model.tokenize_steps(task.texts, task.input_type, task.cut)
    return model.id_steps(task.token_ids, task.input_type, task.cut)


async def _next_of(
    steps: Iterator[list[TokenizedText]], thread: Executor | None
) -> list[TokenizedText] | None:
    """The next step's texts, None after the last one; without a thread, tokenized here."""
    if thread is None:
        return next(steps, None)
    return await asyncio.get_running_loop().run_in_executor(thread, next, steps, None)


def _sort_in(
    found: RequestTokens, index: int, text: TokenizedText, failure: RequestError | None
) -> None:
    if failure is not None:
        found.failures.append(TextFailure(index, failure.code, str(failure)))
        return
    found.ids[index] = text.ids
    found.n_tokens += len(text.ids)
    if text.truncated:
        found.truncated.append(Truncation(index, text.n_tokens, len(text.ids)))


def _refusal(
    text: TokenizedText, n_empty: int, limit: int, *, truncate: bool
) -> RequestError | None:
    if text.n_tokens <= n_empty:
        return EmptyTextError(
            "the text has no tokens: it is empty, or only spaces or control characters"
        )
    if text.n_tokens > limit and not truncate:
        return TextTooLongError(
            f"the text has {text.n_tokens} tokens and the limit is {limit}; shorten it or let "
            "`truncate` cut it"
        )
    return None
