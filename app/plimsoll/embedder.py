"""The engine in process: texts in, float32 vectors out, without a server.

Not another engine: texts go the server's own way through tokenizing, admission, runs and pooling,
on an event loop in a thread of the embedder's own. The command line embeds with it too.
"""

import asyncio
import threading
import warnings
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from functools import partial
from itertools import islice
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np

from plimsoll import __version__
from plimsoll.composition.models import make_opener, served_names, spec_of
from plimsoll.composition.serving import make_core
from plimsoll.encoder.traits import Traits
from plimsoll.machine.memory import MemoryMonitor
from plimsoll.models.pool import ModelPool
from plimsoll.models.slot import ModelSlot
from plimsoll.serving.control_loop import Monitors
from plimsoll.serving.core import ServingCore
from plimsoll.serving.tasks import Embeddings, EmbedTask, Truncation, raise_first
from plimsoll.settings import Settings
from plimsoll.settings_sources import ARGUMENT, load_settings
from plimsoll.sidecar.loader import Phase, Progress
from plimsoll.telemetry.metrics import Telemetry

T = TypeVar("T")

# Given to the engine at once: of a list, and of a stream, whose rows should not wait for long.
LIST_TEXTS = 256
STREAM_TEXTS = 64


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one text: `vector`, float32 (dimensions,), or else `error` says why not."""

    index: int
    vector: np.ndarray | None
    error: str | None
    truncated: Truncation | None


class Embedder:
    """An open model. Owns a thread and, below it, all that a server owns; `close` gives it back.

        with Embedder("builtin") as embedder:
            vectors = embedder.embed(["A mark on a hull", "How deep may a ship be loaded?"])
            print(vectors.shape, embedder.traits.fingerprint())

    Any number of threads may call it at once. A process that is forked off may not.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        threads: int | None = None,
        memory_budget: str | int | None = None,
        settings: Settings | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Open a model, fetched and converted first where it has not been.

        model: builtin, a name, name:quantization, a path or hf:owner/repo, as PLIMSOLL_MODEL is,
            or an alias of PLIMSOLL_MODEL_ALIASES.
        memory_budget: as "400M" or in bytes; what the whole process may use, with all that is not
            Plimsoll's.
        settings: all of them at once. Without it they are read as the command line reads them;
            what is given here comes before the environment.
        progress: told bytes done, bytes in all and the phase, from another thread.
        Warns of settings that have no effect any more.
        Raises SettingsError, ModelErrors, GGUFErrors and CacheErrors.
        """
        given = {"model": model, "threads": threads, "memory_budget": memory_budget}
        if settings is not None and any(value is not None for value in given.values()):
            raise TypeError("give settings, or model, threads and memory_budget, not both")
        if settings is None:
            loaded = load_settings(given, given_by=ARGUMENT)
            for message in loaded.warnings:
                warnings.warn(message, FutureWarning, stacklevel=2)
            settings = loaded.settings
        self._settings = settings
        self._progress = progress
        self._is_closed = False
        self._opened: Future[Traits] = Future()
        self._core = self._make_core()
        self._closing = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="embedder", daemon=True)
        self._thread.start()
        try:
            self.traits = self._opened.result()
        except BaseException:
            self.close()
            raise

    def embed(
        self,
        texts: str | Sequence[str],
        input_type: str | None = None,
        dimensions: int | None = None,
        *,
        truncate: bool = True,
    ) -> np.ndarray:
        """Vectors of a text or a list of texts: float32 (texts, dimensions), normalised.

        input_type: search_document, search_query, classification or clustering: the task's prefix.
        truncate: cut a text that is too long, with a UserWarning; else it is an error.
        Raises EmptyTextError, TextTooLongError or NonFiniteError for the first text without a
        vector, and OverloadError where memory or the queue does not allow it now.
        """
        texts = [texts] if isinstance(texts, str) else texts
        rows: list[np.ndarray] = []
        cuts: list[Truncation] = []
        said: dict[str, None] = {}
        for start in range(0, len(texts), LIST_TEXTS):
            part = texts[start : start + LIST_TEXTS]
            found = self.embed_batch(part, input_type, dimensions, truncate=truncate)
            raise_first(found.failures, partial(_place, start), param="texts")
            rows += [vector for vector in found.vectors if vector is not None]
            cuts += [Truncation(start + cut.index, cut.tokens, cut.kept) for cut in found.truncated]
            said |= dict.fromkeys(found.warnings)
        if cuts:
            said[_told(cuts, len(texts))] = None
        for message in said:
            warnings.warn(message, stacklevel=2)
        if not rows:
            return np.empty((0, self.traits.check_dimensions(dimensions)), np.float32)
        return np.stack(rows)

    def embed_stream(
        self,
        texts: Iterable[str],
        input_type: str | None = None,
        dimensions: int | None = None,
        *,
        truncate: bool = True,
    ) -> Iterator[Row]:
        """A row for each text, in order, in bounded memory: STREAM_TEXTS are read ahead.

        A text without a vector does not end the stream. Raises OverloadError as `embed` does.
        """
        remaining = iter(texts)
        start = 0
        while batch := list(islice(remaining, STREAM_TEXTS)):
            found = self.embed_batch(batch, input_type, dimensions, truncate=truncate)
            yield from rows_of(found, start)
            start += len(batch)

    def embed_batch(
        self,
        texts: Sequence[str],
        input_type: str | None = None,
        dimensions: int | None = None,
        *,
        truncate: bool = True,
    ) -> Embeddings:
        """All that the server would say of this list, which is embedded as one request is.

        Raises OverloadError and TooLargeError for what is not admitted.
        """
        return self._wait_for(self._embed(EmbedTask(texts, input_type, dimensions, truncate)))

    def close(self) -> None:
        """Close the model and end the thread. What is under way in other threads fails."""
        self._is_closed = True
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _make_core(self) -> ServingCore:
        telemetry = Telemetry(__version__)
        monitor = MemoryMonitor(self._settings.memory_budget)
        spec = spec_of(self._settings)
        opener = make_opener(self._settings, monitor, spec)
        slot = ModelSlot(served_names(spec), opener, telemetry.models, idle_unload_s=0)
        slot.watch_progress(self._note_progress)
        models = ModelPool([slot], max_open=1, load_wait_s=None)
        return make_core(self._settings, models, Monitors(monitor), telemetry)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._live())

    async def _live(self) -> None:
        """Open the model and keep everything running until `close`."""
        opening = asyncio.create_task(self._open())
        async with self._core.running():
            closing = asyncio.create_task(self._closing.wait())
            await asyncio.wait([opening, closing], return_when=asyncio.FIRST_COMPLETED)
            await closing
        await self._core.models.close()

    async def _open(self) -> None:
        try:
            async with self._core.models.lease() as model:
                self._opened.set_result(model.traits)
        except BaseException as error:
            self._opened.set_exception(error)

    async def _embed(self, task: EmbedTask) -> Embeddings:
        permit = self._core.gate.permit()
        try:
            return await self._core.service.embed_dense(task, permit)
        finally:
            permit.leave()

    def _wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        if self._is_closed:
            work.close()
            raise RuntimeError("the embedder is closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except CancelledError:
            raise RuntimeError("the embedder was closed") from None
        finally:
            future.cancel()  # where Ctrl-C has ended the waiting

    def _note_progress(self, done_bytes: int, total_bytes: int, phase: Phase) -> None:
        if self._is_closed:
            raise asyncio.CancelledError("the embedder was closed while its model was made ready")
        if self._progress is not None:
            self._progress(done_bytes, total_bytes, phase)


def rows_of(found: Embeddings, start: int = 0) -> Iterator[Row]:
    """A row for each text of a list, counted from `start`."""
    failures = {failure.index: failure.message for failure in found.failures}
    cuts = {cut.index: cut for cut in found.truncated}
    for index, vector in enumerate(found.vectors):
        yield Row(start + index, vector, failures.get(index), cuts.get(index))


def _place(start: int, index: int) -> str:
    return f"text {start + index}"


def _told(cuts: Sequence[Truncation], n_texts: int) -> str:
    first = cuts[0]
    return (
        f"{len(cuts)} of {n_texts} texts were cut to {first.kept} tokens; the first is text "
        f"{first.index}, which has {first.tokens}"
    )
