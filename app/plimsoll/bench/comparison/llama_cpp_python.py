"""llama-cpp-python as a peer: llama.cpp inside the process, as its Python users call it."""

from collections.abc import Sequence

import numpy as np

from plimsoll.bench.comparison.worker import WorkerSpec


class LlamaCppPeer:
    """The library over a GGUF file, pooled as the file says."""

    def __init__(self, spec: WorkerSpec) -> None:
        """Raises ImportError where llama-cpp-python is not installed."""
        import llama_cpp

        self._llama = llama_cpp.Llama(
            spec.path,
            embedding=True,
            pooling_type=llama_cpp.LLAMA_POOLING_TYPE_UNSPECIFIED,
            n_ctx=spec.token_limit,
            n_batch=spec.token_limit,
            n_ubatch=spec.token_limit,
            n_threads=spec.n_threads,
            n_threads_batch=spec.n_threads,
            n_gpu_layers=0,
            verbose=False,
        )

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors float32 (texts, hidden)."""
        return np.array(self._llama.embed(list(texts), normalize=True), np.float32)
