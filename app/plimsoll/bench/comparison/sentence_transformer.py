"""sentence-transformers as a peer: PyTorch as most programs use it, sorted by length, padded."""

from collections.abc import Sequence

import numpy as np

from plimsoll.bench.comparison.naive import BATCH_TEXTS
from plimsoll.bench.comparison.worker import WorkerSpec


class SentenceTransformerPeer:
    """The library over a folder in its own form."""

    def __init__(self, spec: WorkerSpec) -> None:
        """Raises ImportError where sentence-transformers is not installed."""
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(spec.n_threads)
        dtype = torch.bfloat16 if spec.precision == "bfloat16" else torch.float32
        self._model = SentenceTransformer(
            spec.path, device="cpu", model_kwargs={"torch_dtype": dtype}, local_files_only=True
        )

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors float32 (texts, hidden)."""
        vectors = self._model.encode(
            list(texts), batch_size=BATCH_TEXTS, convert_to_tensor=True, show_progress_bar=False
        )
        found: np.ndarray = vectors.float().numpy()
        unit: np.ndarray = found / np.linalg.norm(found, axis=1, keepdims=True)
        return unit
