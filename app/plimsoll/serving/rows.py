"""A text in the engine's queue, and the way of its row back to the event loop that waits for it."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np

from plimsoll.encoder.model import EmbeddingModel
from plimsoll.encoder.pooling import RowForm
from plimsoll.policy.priority import Priority
from plimsoll.serving.clients import current_client
from plimsoll.telemetry.current_request import CurrentRequest, current_request

Row = np.ndarray  # float32 (dimensions,), or of the form "tokens" (tokens, dimensions)


@dataclass(eq=False)
class QueuedText:
    """A text, and the future of its row, which is cancelled where its request wants it no more.

    request: which texts came together. client: whose they are, None of the server's own work.
    measured: where the stages of its way are noted.
    """

    model: EmbeddingModel
    ids: np.ndarray  # int64 (tokens,)
    dimensions: int
    row: "asyncio.Future[Row]"
    loop: asyncio.AbstractEventLoop
    queued_at_s: float
    request: object
    priority: Priority
    form: RowForm = "unit"
    client: object = field(default_factory=current_client)
    measured: CurrentRequest | None = field(default_factory=current_request)

    @property
    def n_tokens(self) -> int:
        """Its length."""
        return len(self.ids)

    @property
    def is_dropped(self) -> bool:
        """Whether its request wants it no more."""
        return self.row.cancelled()


def finish(model: EmbeddingModel, vectors: np.ndarray, texts: Sequence[QueuedText]) -> list[Row]:
    """Cut and normalise pooled vectors, float64 (texts, hidden), as each text asks for it."""
    rows: list[Row] = [np.empty(0, np.float32)] * len(texts)
    asked = [(text.dimensions, text.form) for text in texts]
    for dimensions, form in set(asked):
        places = [place for place, each in enumerate(asked) if each == (dimensions, form)]
        finished = model.finish(vectors[places], dimensions, form)
        for place, row in zip(places, finished, strict=True):
            rows[place] = row
    return rows


def run_together(first: QueuedText, text: QueuedText) -> bool:
    """Whether the engine may take two texts at once: one model's, and both pooled or neither."""
    return text.model is first.model and (text.form == "tokens") == (first.form == "tokens")


def requests_of(texts: Sequence[QueuedText]) -> Mapping[CurrentRequest, float]:
    """A run's requests, with when the first text of each was queued."""
    return {
        text.measured: text.queued_at_s for text in reversed(texts) if text.measured is not None
    }


def digest_of(ids: np.ndarray) -> bytes:
    """Name of a text by its ids, in 16 bytes: ids of thousands of tokens are not held twice."""
    return blake2b(ids.tobytes(), digest_size=16).digest()


def report_row(on_row: Callable[[int], None], n_tokens: int, row: "asyncio.Future[Row]") -> None:
    """Say that a text has run, as the callback of its row; a dropped one has not."""
    if not row.cancelled() and row.exception() is None:
        on_row(n_tokens)


def tell(loop: asyncio.AbstractEventLoop, action: Callable[..., object], *what: object) -> None:
    """Call `action` on its event loop; one that has closed has no use for it."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(action, *what)


def deliver(texts: Sequence[QueuedText], rows: Sequence[Row]) -> None:
    """Hand rows over, waking each event loop once."""
    for loop in dict.fromkeys(text.loop for text in texts):
        mine = [(text.row, row) for text, row in zip(texts, rows, strict=True) if text.loop is loop]
        tell(loop, _set_rows, mine)


def _set_rows(rows: Sequence["tuple[asyncio.Future[Row], Row]"]) -> None:
    for future, row in rows:
        if not future.done():
            future.set_result(row)


def fail(texts: Sequence[QueuedText], error: Exception) -> None:
    """Raise `error` where the rows of these texts are awaited."""
    for text in texts:
        tell(text.loop, _set_error, text.row, error)


def _set_error(row: "asyncio.Future[Row]", error: Exception) -> None:
    if not row.done():
        row.set_exception(error)
