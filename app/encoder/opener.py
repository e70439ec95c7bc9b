"""From a model's name to an open model: fetch, stream into a sidecar, open.

After the first time the sidecar itself is opened again, whatever has become of the source:
a file that is replaced under a running server does not change its vectors.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from app.encoder.catalog import ModelSpec
from app.encoder.hub import fetch
from app.encoder.model import EmbeddingModel
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
    ) -> None:
        self._spec = spec
        self._cache_dir = cache_dir
        self._make_loader = make_loader
        self._n_threads = n_threads
        self._exact = exact
        self._folder: Path | None = None

    def open(self, progress: Progress) -> EmbeddingModel:
        """Fetch, convert and open; blocks. Raises PlimsollError."""
        sidecar = self.prepare(progress)
        try:
            return EmbeddingModel(
                self._spec.name, sidecar, n_threads=self._n_threads, exact=self._exact
            )
        except BaseException:
            sidecar.close()
            raise

    def prepare(self, progress: Progress) -> Sidecar:
        """Fetch and convert, and map the sidecar without opening a model over it."""
        if self._folder is not None and self._folder.exists():
            return Sidecar(self._folder)
        path = fetch(self._spec, self._cache_dir, progress=progress)
        sidecar = self._make_loader(progress).load(path)
        self._folder = sidecar.folder
        return sidecar

    def discard(self) -> None:
        """Remove a damaged sidecar, so that the next open makes it anew."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
