"""From a model's name to an open model: fetch, stream into a sidecar, open.

After the first time the sidecar itself is opened again, whatever has become of the source:
a file that is replaced under a running server does not change its vectors.
"""

import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from app.encoder.catalog import ModelSpec
from app.encoder.hub import fetch
from app.encoder.model import EmbeddingModel
from app.errors import CacheCorruptError
from app.gguf.loader import StreamingGGUFLoader
from app.gguf.sidecar import Sidecar

Progress = Callable[[int, int], None]


class ModelOpener:
    """Opens one model again and again; owns the memory of which sidecar it was."""

    def __init__(
        self,
        spec: ModelSpec,
        cache_dir: Path,
        make_loader: Callable[[Progress], StreamingGGUFLoader],
        *,
        n_threads: int,
        exact: bool = False,
        allow_memory_backed: bool = False,
    ) -> None:
        self._spec = spec
        self._cache_dir = cache_dir
        self._make_loader = make_loader
        self._n_threads = n_threads
        self._exact = exact
        self._allow_memory_backed = allow_memory_backed
        self._folder: Path | None = None

    def open(self, progress: Progress) -> EmbeddingModel:
        """Fetch, convert and open; blocks. Makes damaged weights anew. Raises PlimsollError."""
        try:
            return self._open(progress)
        except CacheCorruptError:  # found while opening; it has put itself aside
            return self._open(progress)

    def _open(self, progress: Progress) -> EmbeddingModel:
        sidecar = self.prepare(progress)
        try:
            return EmbeddingModel(
                self._spec.name, sidecar, n_threads=self._n_threads, exact=self._exact
            )
        except BaseException as error:
            # What failed left views of the map in its frames, and those keep it from closing.
            traceback.clear_frames(error.__traceback__)
            sidecar.close()
            raise

    def prepare(self, progress: Progress) -> Sidecar:
        """Fetch and convert, and map the sidecar without opening a model over it."""
        if self._folder is not None:
            with suppress(CacheCorruptError):  # damaged or evicted: made again below
                return Sidecar(self._folder)
        path = fetch(
            self._spec,
            self._cache_dir,
            progress=progress,
            allow_memory_backed=self._allow_memory_backed,
        )
        sidecar = self._make_loader(progress).load(path)
        self._folder = sidecar.folder
        return sidecar
