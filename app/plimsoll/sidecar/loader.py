"""Stream a GGUF file's tensors into a sidecar: read, expand, validate, write, all at once.

Never holds more than a few pieces of a few hundred kilobytes; never maps a file that is
not Plimsoll's own, unless told to. See `sidecar` for the product, `pipeline` for the stages.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from plimsoll import files
from plimsoll.errors import (
    CacheCorruptError,
    GGUFError,
    GGUFTypeError,
    ModelLoadError,
    ModelNotFoundError,
    ModelUnsupportedError,
)
from plimsoll.gguf.dequantize import SUPPORTED
from plimsoll.gguf.reader import GGUFHeader, read_header
from plimsoll.gguf.sources import FileSource, SourceIdentity
from plimsoll.gguf.types import GGMLType
from plimsoll.sidecar.index import (
    CHUNK_BYTES,
    SidecarIndex,
    SourceRecord,
    TensorPlace,
    WeightsPlace,
    checksum,
    lay_out,
)
from plimsoll.sidecar.load_times import LoadTimes
from plimsoll.sidecar.pipeline import PIECE_BYTES, Pipeline, TensorJob
from plimsoll.sidecar.sidecar import HEADER_NAME, INDEX_NAME, WEIGHTS_NAME, Sidecar
from plimsoll.sidecar.sinks import FileSink, NullSink, Sink

MAX_ATTEMPTS = 4
FIRST_BACKOFF_S = 0.1
_FICLONE = 0x40049409  # linux/fs.h

Phase = Literal["download", "convert", "write", "check", "quantize"]
Progress = Callable[[int, int, Phase], None]  # bytes done, bytes in all, of which phase
Check = Callable[[GGUFHeader], object]


@dataclass(frozen=True)
class _Source:
    """An open source file with what names it."""

    path: Path  # resolved
    file: FileSource
    identity: SourceIdentity  # from before the first byte was read
    header: GGUFHeader
    header_bytes: bytes
    weights: WeightsPlace
    key: str

    @property
    def is_float32(self) -> bool:
        return all(tensor.type is GGMLType.F32 for tensor in self.header.tensors)

    def check_unchanged(self, cause: BaseException | None = None) -> None:
        if self.file.identity() != self.identity:
            raise ModelLoadError(
                f"{self.path} changed while it was being read; try again"
            ) from cause


def sidecars_folder(cache_dir: Path, *, allow_memory_backed: bool = False) -> Path:
    """The folder of all sidecars, made where it is not there. Raises CacheUnsafeError."""
    files.private_folder(cache_dir, allow_memory_backed=allow_memory_backed)
    return files.private_folder(
        cache_dir / files.SIDECARS_FOLDER, allow_memory_backed=allow_memory_backed
    )


def unreported(done_bytes: int, total_bytes: int, phase: Phase) -> None:
    """Progress that is told to no reader."""


class StreamingGGUFLoader:
    """Makes or reuses the sidecar of a GGUF file. Owns the folder `<cache>/sidecars`."""

    def __init__(
        self,
        cache_dir: Path,
        *,
        compute: str = "float32",
        in_place: bool = False,
        allow_memory_backed: bool = False,
        n_workers: int = 2,
        under_pressure: Callable[[], bool] = lambda: False,
        progress: Progress = unreported,
        wait: Callable[[float], object] = time.sleep,
        times: LoadTimes | None = None,
    ) -> None:
        """Build nothing yet.

        in_place: map a float32 source of the user's where it lies. Unsafe: truncating the file
            kills the process, and writing to it changes the vectors. A source in `<cache>/built`,
            where Plimsoll alone writes, is always mapped where it lies.
        allow_memory_backed: accept a cache folder whose files are memory.
        under_pressure: whether memory is above the line; the readers slow down while it is.
            Asked many times a second, from a thread of the pipeline.
        progress: told float32 bytes done and in all, in the thread of `load`; never less than
            before. The phase is `check` where the source is mapped as it lies, else `write`.
            What it raises ends the load.
        wait: sleeps the seconds of a backoff.
        times: told how long everything took.
        """
        self._cache_dir = cache_dir
        self._compute = compute
        self._in_place = in_place
        self._allow_memory_backed = allow_memory_backed
        self._n_workers = n_workers
        self._under_pressure = under_pressure
        self._progress = progress
        self._wait = wait
        self._times = times or LoadTimes()

    def load(self, path: Path, check: Check = lambda header: None) -> Sidecar:
        """Open the sidecar of the GGUF file at `path`, made first where there is none.

        check: raises for a header that is not to be expanded, before anything is written.

        Another process that makes the same one is waited for. A sidecar that is damaged,
        incomplete or of an older format is made again; a newer one is left alone.
        Raises ModelNotFoundError, ModelUnsupportedError, GGUFError, a CacheError, or
        ModelLoadError after MAX_ATTEMPTS with ever smaller pieces; nothing half made is left.
        """
        with _open_source(path) as file:
            source = self._identify(path, file, check)
            root = sidecars_folder(self._cache_dir, allow_memory_backed=self._allow_memory_backed)
            folder = root / source.key
            with files.disk_failures(root), files.locked(files.lock_of(folder)):
                if folder.exists():
                    try:
                        return Sidecar(folder)
                    except CacheCorruptError:
                        shutil.rmtree(folder)
                self._build(source, folder)
                return Sidecar(folder)

    def look(self, path: Path, check: Check = lambda header: None) -> None:
        """Raise what `load` would refuse the file at `path` for, by its header; writes nothing."""
        with _open_source(path) as file:
            self._identify(path, file, check)

    def _identify(self, path: Path, file: FileSource, check: Check) -> _Source:
        identity = file.identity()
        header = read_header(file)
        check(header)
        if not header.tensors:
            raise ModelUnsupportedError(f"{path} holds no tensors; it may be a vocabulary alone")
        for tensor in header.tensors:
            if tensor.type not in SUPPORTED:
                raise GGUFTypeError(
                    f"tensor {tensor.name} has type {tensor.type.name}, which Plimsoll does not "
                    "expand; use a file in F16, Q8_0, Q6_K, Q5_K_M or Q4_K_M",
                    offset=tensor.offset,
                )
        path = path.resolve()
        header_bytes = file.read_at(0, header.data_offset)
        weights = self._weights_place(path, header)
        named = [
            self._compute, str(path), weights, identity.size, identity.mtime_ns, identity.inode,
            hashlib.sha256(header_bytes).hexdigest(),
        ]  # fmt: skip
        key = hashlib.sha256(json.dumps(named).encode()).hexdigest()[:24]
        return _Source(path, file, identity, header, header_bytes, weights, key)

    def _weights_place(self, path: Path, header: GGUFHeader) -> WeightsPlace:
        if any(tensor.type is not GGMLType.F32 for tensor in header.tensors):
            return WeightsPlace.COPY
        if path.is_relative_to(self._cache_dir.resolve() / files.BUILT_FOLDER):
            return WeightsPlace.BUILT
        return WeightsPlace.IN_PLACE if self._in_place else WeightsPlace.COPY

    def _build(self, source: _Source, folder: Path) -> None:
        temporary = files.temporary_of(folder)
        if temporary.exists():  # left by a process that was killed: its lock is gone
            shutil.rmtree(temporary)
        temporary.mkdir(mode=0o700)
        try:
            index = self._write_weights(source, temporary)
            source.check_unchanged()
            files.write_durably(temporary / HEADER_NAME, source.header_bytes)
            files.write_durably(temporary / INDEX_NAME, index.to_json().encode())
            files.publish(temporary, folder)
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, GGUFError | ModelLoadError):
                source.check_unchanged(cause=error)
            raise

    def _write_weights(self, source: _Source, folder: Path) -> SidecarIndex:
        tensors = source.header.tensors
        as_in_source = [TensorJob(tensor, tensor.offset) for tensor in tensors]
        size = source.identity.size
        if source.weights is not WeightsPlace.COPY:
            jobs = as_in_source
            self._run(source.file, jobs, NullSink(), "check")
        elif source.is_float32 and _clone(source, folder / WEIGHTS_NAME):
            jobs = as_in_source
            # The clone is what will be mapped, so the clone is what is checked.
            with FileSource(folder / WEIGHTS_NAME) as clone:
                self._run(clone, jobs, NullSink(), "check")
        else:
            places, size = lay_out(tensors)
            jobs = [TensorJob(tensor, offset) for tensor, offset in places]
            self._write_copy(source, folder / WEIGHTS_NAME, jobs, size)
        return SidecarIndex(
            compute=self._compute,
            source=_record(source),
            content_sha256=_content_sha256(jobs),
            header_checksum=checksum(source.header_bytes).hex(),
            weights=source.weights,
            weights_bytes=size,
            tensors={job.tensor.name: _place(job) for job in jobs},
        )

    def _write_copy(
        self, source: _Source, path: Path, jobs: Sequence[TensorJob], size: int
    ) -> None:
        files.check_space(path.parent, size)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.truncate(fd, size)
            self._run(source.file, jobs, FileSink(fd), "write")
            os.fsync(fd)
        finally:
            os.close(fd)

    def _run(self, file: FileSource, jobs: Sequence[TensorJob], sink: Sink, phase: Phase) -> None:
        total_bytes = sum(job.target_bytes for job in jobs)
        told_bytes = -1

        def progress() -> None:
            nonlocal told_bytes
            # A tensor that is tried again starts at nothing; what was told is not taken back.
            done_bytes = sum(job.written_bytes for job in jobs)
            if done_bytes > told_bytes:
                told_bytes = done_bytes
                self._progress(done_bytes, total_bytes, phase)

        pipeline = Pipeline(
            file,
            sink,
            n_workers=self._n_workers,
            under_pressure=self._under_pressure,
            progress=progress,
            times=self._times,
        )
        try:
            with self._times.loading():
                self._run_until_done(pipeline, jobs)
        except MemoryError as error:
            raise ModelLoadError("no memory was left to load the weights with") from error

    def _run_until_done(self, pipeline: Pipeline, jobs: Sequence[TensorJob]) -> None:
        left = list(jobs)
        piece_bytes = PIECE_BYTES
        failed: dict[str, BaseException] = {}
        for attempt in range(MAX_ATTEMPTS):
            if attempt:
                self._wait(FIRST_BACKOFF_S * 2 ** (attempt - 1))
                piece_bytes = max(CHUNK_BYTES, piece_bytes // 2)
            failed = pipeline.run(left, piece_bytes)
            left = [job for job in left if job.tensor.name in failed]
            if not left:
                return
        name, error = next(iter(failed.items()))
        raise ModelLoadError(
            f"{len(left)} tensors could not be loaded in {MAX_ATTEMPTS} attempts; {name}: {error!r}"
        ) from error


def _record(source: _Source) -> SourceRecord:
    found = source.identity
    return SourceRecord(str(source.path), found.size, found.mtime_ns, found.inode)


def _place(job: TensorJob) -> TensorPlace:
    return TensorPlace(job.tensor.name, job.tensor.shape, job.target_offset, bytes(job.checksums))


def _content_sha256(jobs: Sequence[TensorJob]) -> str:
    """Hash of names, types, shapes and source bytes; their order in the file does not matter."""
    content = hashlib.sha256()
    for job in sorted(jobs, key=lambda job: job.tensor.name):
        tensor = job.tensor
        content.update(json.dumps([tensor.name, tensor.type.name, tensor.shape]).encode())
        content.update(job.source_sha256)
    return content.hexdigest()


@contextmanager
def _open_source(path: Path) -> Iterator[FileSource]:
    try:
        source = FileSource(path)
    except OSError as error:
        raise ModelNotFoundError(f"cannot open the model file {path}: {error.strerror}") from error
    with source:
        yield source


def _clone(source: _Source, target: Path) -> bool:
    """Clone the source copy-on-write; False where the file system cannot."""
    with source.path.open("rb") as file, target.open("xb") as clone:
        found = os.fstat(file.fileno())
        if (found.st_ino, found.st_dev) != (source.identity.inode, source.identity.device):
            raise ModelLoadError(f"{source.path} was replaced while it was being read; try again")
        try:
            fcntl.ioctl(clone.fileno(), _FICLONE, file.fileno())
        except OSError:
            target.unlink()
            return False
        os.fsync(clone.fileno())
    return True
