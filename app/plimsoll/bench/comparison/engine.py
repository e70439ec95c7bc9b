"""Plimsoll's engine as a peer: opened as the server opens it, fed the executor's runs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from plimsoll.bench.comparison.texts import in_runs
from plimsoll.bench.comparison.worker import Precision
from plimsoll.encoder.catalog import resolve
from plimsoll.machine import allocator
from plimsoll.models.opener import ModelOpener
from plimsoll.sidecar.loader import StreamingGGUFLoader, unreported


def make_opener(
    model: str, cache_dir: Path, *, n_threads: int, compute: Precision = "float32"
) -> ModelOpener:
    """What opens a model as the server does by default, without reading any settings.

    In int8 whatever its vectors come to: speed and memory can be measured on random weights too.
    """
    allocator.tune()
    return ModelOpener(
        resolve(model),
        cache_dir,
        lambda progress: StreamingGGUFLoader(cache_dir, progress=progress),
        n_threads=n_threads,
        allow_memory_backed=False,
        compute=compute,
        min_cosine=0.0,  # of int8 alone
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
        compute: Precision = "float32",
    ) -> None:
        """Open `model`, whose sidecar is warm; runs hold at most so many texts and tokens."""
        opener = make_opener(model, cache_dir, n_threads=n_threads, compute=compute)
        self._model = opener.open(unreported)
        self._run_limits = (run_texts, run_tokens)
        self._drop_pages = drop_pages

    def encode(self, texts: Sequence[np.ndarray]) -> np.ndarray:
        """Unit vectors float32 (texts, hidden)."""
        pooled = [
            self._model.encode(
                run,
                drop_pages=self._drop_pages,
                # As under a control group's limit that the weights do not fit.
                kept_layers=0 if self._drop_pages else None,
            )
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
