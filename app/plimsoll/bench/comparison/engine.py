"""Plimsoll's engine as a peer: opened as the server opens it, fed the executor's runs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from plimsoll.bench.comparison.texts import in_runs
from plimsoll.encoder.catalog import resolve
from plimsoll.machine import allocator
from plimsoll.models.opener import ModelOpener
from plimsoll.sidecar.loader import StreamingGGUFLoader, unreported


def make_opener(model: str, cache_dir: Path, *, n_threads: int) -> ModelOpener:
    """What opens a model as the server does by default, without reading any settings."""
    allocator.tune()
    return ModelOpener(
        resolve(model),
        cache_dir,
        lambda progress: StreamingGGUFLoader(cache_dir, progress=progress),
        n_threads=n_threads,
        allow_memory_backed=False,
        compute="float32",
        min_cosine=1.0,  # of int8 alone
    )


class EnginePeer:
    """An open model without the service around it."""

    def __init__(
        self,
        model: str,
        cache_dir: Path,
        *,
        n_threads: int,
        run_texts: int,
        run_tokens: int,
        drop_pages: bool,
    ) -> None:
        """Open `model`, whose sidecar is warm; runs hold at most so many texts and tokens."""
        self._model = make_opener(model, cache_dir, n_threads=n_threads).open(unreported)
        self._run_limits = (run_texts, run_tokens)
        self._drop_pages = drop_pages

    def encode(self, texts: Sequence[np.ndarray]) -> np.ndarray:
        """Unit vectors float32 (texts, hidden)."""
        pooled = [
            self._model.encode(run, drop_pages=self._drop_pages)
            for run in in_runs(texts, *self._run_limits)
        ]
        return self._model.finish(np.concatenate(pooled), self._model.traits.dimensions)

    def release(self) -> None:
        """Give memory back, as the server does when it has been idle for a second."""
        self._model.release_memory()

    def predict(self, lengths: Sequence[int]) -> int:
        """Bytes that the engine's own formula says."""
        return self._model.run_bytes(lengths)

    def close(self) -> None:
        """Stop threads and unmap the weights."""
        self._model.close()
