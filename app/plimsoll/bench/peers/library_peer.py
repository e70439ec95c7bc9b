"""A peer that is a library: a worker process, asked through pipes; its calls run in turn."""

import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from plimsoll.bench.comparison.processes import MemoryWatch, Worker
from plimsoll.bench.comparison.worker import WorkerSpec
from plimsoll.bench.peers.peer import FIRST_TEXT


class LibraryPeer:
    """Owns the worker, and the one thread that talks to it.

    Callers are served in the order in which they came: at a lock the same one might win again and
    again, and its latency would pass for everyone's.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        """Start, and return once it has embedded a text. Raises WorkerDiedError."""
        with ExitStack() as opened:
            self._turn = ThreadPoolExecutor(1)
            opened.callback(self._turn.shutdown, cancel_futures=True)
            self._worker = Worker(spec)
            opened.callback(self._worker.close)
            self.watch = MemoryWatch(self._worker.pid)
            opened.callback(self.watch.stop)
            self._worker.wait_ready()
            self.embed([FIRST_TEXT])
            self._opened = opened.pop_all()

    def embed(self, texts: Sequence[str]) -> None:
        """Have these texts embedded; the vectors stay there. Raises WorkerDiedError."""
        self._ask(texts, "")

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors float32 (texts, hidden). Raises WorkerDiedError."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "vectors.npy"
            self._ask(texts, str(path))
            found: np.ndarray = np.load(path)
            return found

    def close(self) -> None:
        """End the worker."""
        self._opened.close()

    def _ask(self, texts: Sequence[str], vectors: str) -> None:
        self._turn.submit(self._worker.ask, texts=list(texts), vectors=vectors).result()
