"""From a model's name to an open model: fetch, judge by the header, stream into a sidecar, open.

After the first time the sidecar itself is opened again, also when the source has changed: a file
that is replaced under a running server does not change its vectors. Beside the sidecar lie its
packed weights; where they cannot be had, the model is opened without them, and says so.
"""

import logging
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from typing import TypeAlias

from plimsoll.encoder.architecture import read_architecture
from plimsoll.encoder.backends.gpu import gpu_status
from plimsoll.encoder.backends.onnx_backend import OnnxBackend
from plimsoll.encoder.backends.packed_weights import PackedWeights
from plimsoll.encoder.backends.packing import open_packed
from plimsoll.encoder.backends.protocol import OpenBackend
from plimsoll.encoder.catalog import ModelSpec
from plimsoll.encoder.description import read_description
from plimsoll.encoder.model import EmbeddingModel
from plimsoll.encoder.quantization.codes_file import CodesFile
from plimsoll.encoder.refused_memory import refused_memory_named
from plimsoll.encoder.roads import road_plan
from plimsoll.encoder.weights import layer_arrays
from plimsoll.errors import (
    CacheCorruptError,
    CacheError,
    ModelNotFoundError,
    PackingError,
    QuantizationError,
)
from plimsoll.models.failures import closed_on_failure
from plimsoll.models.hub import check_can_fetch, fetch, local_file
from plimsoll.models.int8_speed import is_faster, speed_ratio
from plimsoll.models.quantizing import Quantizer
from plimsoll.sidecar.loader import Progress, StreamingGGUFLoader, unreported
from plimsoll.sidecar.sidecar import Sidecar

_Identity: TypeAlias = tuple[int, int, int, int]  # of a file: device, inode, bytes, last change

log = logging.getLogger(__name__)

ADVICE = "set PLIMSOLL_COMPUTE to float32 or auto"


class ModelOpener:
    """Opens one model again and again; remembers which sidecar it was, and the file it tried."""

    def __init__(
        self,
        spec: ModelSpec,
        cache_dir: Path,
        make_loader: Callable[[Progress], StreamingGGUFLoader],
        *,
        n_threads: int,
        allow_memory_backed: bool,
        compute: str,
        min_cosine: float,
    ) -> None:
        """compute: float32, int8, or auto, which is the faster of both where int8 passes.

        min_cosine: of int8 vectors to float32 ones, at the worst.
        """
        self._compute = compute
        self._min_cosine = min_cosine
        self._spec = spec
        self._cache_dir = cache_dir
        self._make_loader = make_loader
        self._n_threads = n_threads
        self._allow_memory_backed = allow_memory_backed
        self._folder: Path | None = None
        self._tried: _Identity | None = None  # the file at the last try to open it or look at it
        self._last_seen: _Identity | None = None

    def look(self) -> None:
        """Raise what would keep the model from opening, as far as its file's header tells.

        Reads no weights and fetches nothing: a model that is not fetched yet is no failure.
        """
        self._tried = self._identity()
        if self._folder is None:  # else the weights are ready, with or without the file
            path = local_file(self._spec, self._cache_dir)
            if path is None:
                check_can_fetch(self._spec, self._cache_dir)
            else:
                self._make_loader(unreported).look(path, check=read_description)

    def has_new_file(self) -> bool:
        """Whether the file is another than at the last try, and has rested since the last call."""
        seen = self._identity()
        rests, self._last_seen = seen == self._last_seen, seen
        return rests and seen != self._tried

    def source_change(self) -> str | None:
        """What has become of the model's file since it was read; None where it is the same."""
        if self._tried is None or (found := self._identity()) == self._tried:
            return None
        what = "is gone" if found is None else "has changed"
        return (
            f"its file {what} since the server read it; what was read goes on being served until "
            "the server is started again"
        )

    def open(self, progress: Progress) -> EmbeddingModel:
        """Fetch, convert and open; blocks. Makes damaged weights anew. Raises PlimsollError."""
        with self._refused_memory_named():
            try:
                return self._open(progress)
            except CacheCorruptError as error:  # found while opening; it has put itself aside
                log.warning("%s is made again: %s", self._spec.name, str(error))
                return self._open(progress)

    def prepare(self, progress: Progress) -> Sidecar:
        """Fetch, convert, round and pack; map the sidecar without opening a model over it.

        Raises ModelUnsupportedError for a file that would not open, and leaves nothing of it.
        """
        with self._refused_memory_named():
            return self._prepare(progress)

    def _prepare(self, progress: Progress) -> Sidecar:
        sidecar = self._sidecar(progress)
        with closed_on_failure(sidecar):
            codes, _ = self._choose(sidecar, progress)
            with closed_on_failure(codes):
                try:
                    with ExitStack() as opened:
                        self._pack(sidecar, codes, opened)
                except PackingError as error:
                    self._note(error)
            if codes is not None:
                codes.close()
        return sidecar

    def _open(self, progress: Progress) -> EmbeddingModel:
        sidecar = self._sidecar(progress)
        with closed_on_failure(sidecar):
            codes, reason = self._choose(sidecar, progress)
        return self._open_over(sidecar, codes, reason)

    def _open_over(
        self, sidecar: Sidecar, codes: CodesFile | None, reason: str | None = None
    ) -> EmbeddingModel:
        """Open over a sidecar and codes: the model closes them, and this call where it fails."""
        with closed_on_failure(codes, sidecar):
            gpu_bytes = gpu_status().session_bytes(sidecar.index.weights_bytes)
            if gpu_bytes and codes is None:  # packed weights and codes are for the CPU's kernels
                log.info("%s: %s", self._spec.name, gpu_status().found)
                on_gpu = partial(OnnxBackend, gpu_bytes=gpu_bytes)
                return self._model(sidecar, [on_gpu], codes, reason)
            try:
                return self._open_packed(sidecar, codes, reason)
            except PackingError as error:
                self._note(error)
            return self._model(sidecar, [OnnxBackend] * len(road_plan(codes)), codes, reason)

    def _open_packed(
        self, sidecar: Sidecar, codes: CodesFile | None, reason: str | None
    ) -> EmbeddingModel:
        with ExitStack() as opened:
            packed = self._pack(sidecar, codes, opened)
            open_backends = [partial(OnnxBackend, packed=own) for own in packed]
            model = self._model(sidecar, open_backends, codes, reason)
            opened.pop_all()  # the model's backends close them
            return model

    def _pack(
        self, sidecar: Sidecar, codes: CodesFile | None, opened: ExitStack
    ) -> list[PackedWeights]:
        """Packed weights of each road of the model."""
        architecture = read_architecture(sidecar.header)
        packed = []
        for _, own in road_plan(codes):
            layers = layer_arrays(architecture, sidecar, own)
            weights = open_packed(sidecar, architecture, layers, own)
            packed.append(opened.enter_context(closing(weights)))
        return packed

    def _model(
        self,
        sidecar: Sidecar,
        open_backends: Sequence[OpenBackend],
        codes: CodesFile | None,
        reason: str | None,
    ) -> EmbeddingModel:
        return EmbeddingModel(
            self._spec.name,
            sidecar,
            open_backends,
            n_threads=self._n_threads,
            codes=codes,
            compute_reason=reason,
        )

    def _refused_memory_named(self) -> AbstractContextManager[None]:
        what_for = f"to open {self._spec.name}"
        return refused_memory_named(OnnxBackend.is_allocation_failure, what_for)

    def _note(self, error: PackingError) -> None:
        traceback.clear_frames(error.__traceback__)  # of views of maps, which close later
        what = "%s computes with weights packed at every call: %s"
        log.warning(what, self._spec.name, str(error))  # a record would keep the error itself

    def _choose(self, sidecar: Sidecar, progress: Progress) -> tuple[CodesFile | None, str | None]:
        """Codes to compute with, None where that is to be float32; and why, where `auto` chose."""
        if self._compute == "float32":
            return None, None
        quantizer = Quantizer(sidecar, min_cosine=self._min_cosine, n_threads=self._n_threads)
        if self._compute == "int8":
            try:
                return quantizer.open_codes(progress), None
            except QuantizationError as error:
                raise QuantizationError(f"{error}; {ADVICE}") from None
        codes = None
        try:
            codes = quantizer.open_codes(progress)
            with closed_on_failure(codes):
                ratio = speed_ratio(codes, self._open_over)
            reason = f"int8 is {ratio:.2f} times as fast as float32 here"
        except CacheCorruptError:  # which is made again
            raise
        except (QuantizationError, CacheError) as error:
            ratio, reason = 0.0, str(error)
        if codes is not None and not is_faster(ratio):
            codes.close()
            codes = None
        taken = "int8" if codes else "float32"
        log.info("%s is computed in %s: %s", self._spec.name, taken, reason)
        return codes, reason

    def _sidecar(self, progress: Progress) -> Sidecar:
        if self._folder is not None:
            with suppress(CacheCorruptError):  # damaged or evicted: made again below
                return Sidecar(self._folder)
        self._tried = self._identity()
        path = fetch(
            self._spec,
            self._cache_dir,
            progress=progress,
            allow_memory_backed=self._allow_memory_backed,
        )
        self._tried = self._identity()  # what was fetched just now is no new file
        sidecar = self._make_loader(progress).load(path, check=read_description)
        self._folder = sidecar.folder
        return sidecar

    def _identity(self) -> _Identity | None:
        """What the file is now; None where there is none."""
        try:
            path = local_file(self._spec, self._cache_dir)
            found = path.stat() if path is not None else None
        except (ModelNotFoundError, OSError):
            return None
        if found is None:
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns
