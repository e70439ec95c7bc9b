"""Stages that run at once, joined by bounded queues: read → expand → validate → write.

Knows nothing of sidecars: it turns a plan of tensors into float32 bytes at given offsets,
a checksum for every chunk, and a hash of every source tensor. A piece is a run of whole
blocks; its float32 form is a whole number of checksum chunks, so pieces may arrive in any
order and in any size.

Reading happens in the caller's thread, so an interrupt or an error of the caller's callback
ends the run; the other stages have threads of their own, which all end before `run` does. A
stage that has given up goes on taking pieces, to throw them away: so no other stage waits for ever.

Owners: the reader owns the plan; each stage owns the piece it holds; failures are shared
under a lock.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from queue import Queue
from time import perf_counter
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from plimsoll.errors import GGUFError, ModelLoadError
from plimsoll.files import is_disk_full
from plimsoll.gguf.dequantize import dequantize
from plimsoll.gguf.reader import TensorInfo
from plimsoll.gguf.sources import FileSource
from plimsoll.gguf.types import BLOCK_SHAPE
from plimsoll.sidecar.index import CHECKSUM_BYTES, CHUNK_BYTES, chunk_checksums, n_chunks
from plimsoll.sidecar.load_times import LoadTimes
from plimsoll.sidecar.read_ahead import ReadAhead
from plimsoll.sidecar.sinks import Sink

QUEUE_PIECES = 16
# Float32 bytes a piece expands to: large enough to amortise Python, small enough for caches.
PIECE_BYTES = 512 << 10
WATCH_INTERVAL_S = 0.05


@dataclass
class TensorJob:
    """One tensor's way through the pipeline. The reader and the stages fill in the rest."""

    tensor: TensorInfo
    target_offset: int
    checksums: bytearray = field(init=False)
    source_sha256: bytes = field(init=False, default=b"")
    written_bytes: int = field(init=False, default=0)
    started_s: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self.checksums = bytearray(CHECKSUM_BYTES * n_chunks(self.target_bytes))

    @property
    def target_bytes(self) -> int:
        """Bytes as float32."""
        return 4 * self.tensor.n_elements


@dataclass
class _Piece:
    job: TensorJob
    start_element: int
    n_elements: int
    held_bytes: int  # of the read-ahead
    source: memoryview
    values: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))


_Inbox: TypeAlias = Queue[_Piece | None]


@dataclass
class _Stage:
    """Threads that do one thing; None in the inbox ends one of them."""

    inbox: _Inbox
    threads: list[threading.Thread]

    def end(self) -> None:
        started = [thread for thread in self.threads if thread.ident is not None]
        for _ in started:
            self.inbox.put(None)
        for thread in started:
            thread.join()


class Pipeline:
    """Runs jobs, with every stage in its own threads; may be run again for those that failed."""

    def __init__(
        self,
        source: FileSource,
        sink: Sink,
        *,
        n_workers: int,
        under_pressure: Callable[[], bool],
        progress: Callable[[], None],
        times: LoadTimes | None = None,
    ) -> None:
        """`progress` is called in the caller's thread, when `written_bytes` may have grown."""
        self._source = source
        self._sink = sink
        self._n_workers = n_workers
        self._under_pressure = under_pressure
        self._progress = progress
        self._times = times or LoadTimes()
        self._read_ahead = ReadAhead()
        self._lock = threading.Lock()
        self._failed: dict[str, BaseException] = {}
        self._fatal: BaseException | None = None

    def run(self, jobs: Sequence[TensorJob], piece_bytes: int) -> dict[str, BaseException]:
        """Pass the tensors through; returns those that failed in a way worth a retry.

        piece_bytes: float32 bytes a piece, a multiple of CHUNK_BYTES.
        Raises at once what no retry can mend: GGUFError, ModelLoadError for values that are
        not finite, OSError for a full disk, and anything unexpected.
        """
        self._failed, self._fatal = {}, None
        self._read_ahead = ReadAhead()
        for job in jobs:
            job.written_bytes = 0
        to_expand, to_validate, to_write = (Queue[_Piece | None](QUEUE_PIECES) for _ in range(3))
        stages = [
            self._stage("expand", self._expand, to_expand, to_validate, self._n_workers),
            self._stage("validate", self._validate, to_validate, to_write),
            self._stage("write", self._write, to_write, None),
        ]
        done = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(done,), name="gguf-watch", daemon=True)
        try:
            for thread in (watcher, *(thread for stage in stages for thread in stage.threads)):
                thread.start()
            for job in jobs:
                self._read(job, piece_bytes, to_expand)
        except BaseException as error:
            self._give_up(error)
            raise
        finally:
            for stage in stages:
                stage.end()
            done.set()
            if watcher.ident is not None:
                watcher.join()
        self._check(jobs)
        with self._times.stage("write"):
            self._sink.flush()
        self._progress()
        return self._failed

    def _stage(
        self,
        name: str,
        work: Callable[[_Piece], None],
        inbox: _Inbox,
        outbox: _Inbox | None,
        n_threads: int = 1,
    ) -> _Stage:
        # Daemons: a second interrupt, while the first one is being obeyed, must not hang the exit.
        threads = [
            threading.Thread(
                target=self._serve,
                args=(self._times.stage(name)(work), inbox, outbox),
                name=f"gguf-{name}",
                daemon=True,
            )
            for _ in range(n_threads)
        ]
        return _Stage(inbox, threads)

    def _serve(self, work: Callable[[_Piece], None], inbox: _Inbox, outbox: _Inbox | None) -> None:
        while True:
            try:
                if not self._serve_one(work, inbox, outbox):
                    return
            except BaseException as error:  # and go on, or the stage before would hang
                self._give_up(error)

    def _serve_one(
        self, work: Callable[[_Piece], None], inbox: _Inbox, outbox: _Inbox | None
    ) -> bool:
        piece = inbox.get()
        if piece is None:
            return False
        try:
            passes = not self._is_given_up(piece.job)
            if passes:
                work(piece)
        except BaseException as error:
            passes = False
            self._fail(piece.job, error)
        if passes and outbox is not None:
            outbox.put(piece)
        else:
            self._read_ahead.release(piece.held_bytes)
        return True

    def _read(self, job: TensorJob, piece_bytes: int, outbox: _Inbox) -> None:
        digest = hashlib.sha256()
        job.started_s = perf_counter()
        for start, n_elements in _pieces(job.tensor, piece_bytes):
            if self._is_given_up(job):
                return
            offset, n_bytes = _source_range(job.tensor, start, n_elements)
            held_bytes = n_bytes + 4 * n_elements
            self._read_ahead.acquire(held_bytes)
            try:
                source = memoryview(bytearray(n_bytes))
                with self._times.stage("read"):
                    self._source.readinto_at(offset, source)
                digest.update(source)
                piece = _Piece(job, start, n_elements, held_bytes, source)
            except (GGUFError, OSError, MemoryError) as error:
                self._read_ahead.release(held_bytes)
                self._fail(job, error)
                return
            outbox.put(piece)
            self._progress()
        job.source_sha256 = digest.digest()

    def _expand(self, piece: _Piece) -> None:
        piece.values = dequantize(piece.job.tensor.type, piece.source)
        self._times.note_expanded(piece.values.nbytes)
        n_bytes = len(piece.source)
        piece.source = memoryview(b"")
        piece.held_bytes -= n_bytes
        self._read_ahead.release(n_bytes)

    def _validate(self, piece: _Piece) -> None:
        values, job = piece.values, piece.job
        if len(values) != piece.n_elements:
            raise ModelLoadError(
                f"{job.tensor.name} expanded to {len(values)} values, not {piece.n_elements}"
            )
        # NaN passes through min and max, so two numbers tell for the whole piece.
        if not (np.isfinite(values.min()) and np.isfinite(values.max())):
            where = piece.start_element + int(np.argmin(np.isfinite(values)))
            raise ModelLoadError(
                f"{job.tensor.name} holds a value that is not finite, at element {where}; the "
                "file is damaged or was made by a broken conversion"
            )
        first = CHECKSUM_BYTES * (piece.start_element * 4 // CHUNK_BYTES)
        sums = b"".join(chunk_checksums(values.data.cast("B")))
        job.checksums[first : first + len(sums)] = sums

    def _write(self, piece: _Piece) -> None:
        data = piece.values.data.cast("B")
        self._sink.write_at(piece.job.target_offset + 4 * piece.start_element, data)
        job = piece.job
        job.written_bytes += len(data)
        if job.written_bytes == job.target_bytes:
            self._times.note_tensor(perf_counter() - job.started_s)

    def _watch(self, done: threading.Event) -> None:
        while not done.wait(WATCH_INTERVAL_S):
            try:
                self._read_ahead.adapt(under_pressure=self._under_pressure())
            except BaseException as error:
                self._give_up(error)
                return

    def _is_given_up(self, job: TensorJob) -> bool:
        with self._lock:
            return self._fatal is not None or job.tensor.name in self._failed

    def _fail(self, job: TensorJob, error: BaseException) -> None:
        # A read that failed may succeed later; a file that is too short will not grow, and a
        # full disk will not empty itself within our patience.
        cause = error.__cause__ if isinstance(error, GGUFError) else error
        if not isinstance(cause, OSError | MemoryError) or is_disk_full(cause):
            self._give_up(error)
            return
        # Its frames hold pieces, just when memory may be short.
        cause.__traceback__ = error.__traceback__ = None
        with self._lock:
            self._failed.setdefault(job.tensor.name, error)

    def _give_up(self, error: BaseException) -> None:
        with self._lock:
            if self._fatal is None:
                self._fatal = error
        self._read_ahead.stop()

    def _check(self, jobs: Sequence[TensorJob]) -> None:
        """Nothing that failed for good, and nothing lost on the way."""
        if self._fatal is not None:
            raise self._fatal
        for job in jobs:
            name = job.tensor.name
            if name not in self._failed and job.written_bytes != job.target_bytes:
                raise ModelLoadError(
                    f"{name}: {job.written_bytes} of {job.target_bytes} bytes were written"
                )


def _pieces(tensor: TensorInfo, piece_bytes: int) -> Iterator[tuple[int, int]]:
    """First element and count of each piece."""
    step = piece_bytes // 4
    for start in range(0, tensor.n_elements, step):
        yield start, min(step, tensor.n_elements - start)


def _source_range(tensor: TensorInfo, start: int, n_elements: int) -> tuple[int, int]:
    """File offset and length of a piece; pieces start on whole blocks."""
    block_elements, block_bytes = BLOCK_SHAPE[tensor.type]
    offset = tensor.offset + start // block_elements * block_bytes
    return offset, n_elements // block_elements * block_bytes
