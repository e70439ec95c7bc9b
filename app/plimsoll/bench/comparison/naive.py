"""The naive path: an exported model in an ordinary session, fed padded batches in file order.

Every option of ONNX Runtime is at its default: arena on, all graph optimizations, and unless told
otherwise as many threads as there are cores. Padding and pooling here serve the other padding
peers too.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

BATCH_TEXTS = 32


class NaivePeer:
    """An ordinary session over the exported graph, fed padded batches."""

    def __init__(self, path: Path, pooling: str, *, n_threads: int = 0) -> None:
        """Open the file that `naive_export` wrote.

        pooling: a name of Pooling. n_threads: 0 for ONNX Runtime's own choice.
        """
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = n_threads
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._pooling = pooling

    def encode(self, texts: Sequence[np.ndarray]) -> np.ndarray:
        """Unit vectors float32 (texts, hidden), in batches of BATCH_TEXTS in the list's order."""
        rows = []
        for start in range(0, len(texts), BATCH_TEXTS):
            ids, mask = padded(texts[start : start + BATCH_TEXTS])
            inputs = {"input_ids": ids, "attention_mask": mask}
            rows.append(pooled(self._session.run(None, inputs)[0], mask, self._pooling))
        return np.concatenate(rows)

    def release(self) -> None:
        """Nothing: an ordinary session keeps what it has."""

    def predict(self, lengths: Sequence[int]) -> int:
        """Nothing: what a padded batch takes is not known before it has run."""
        return 0


def padded(texts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask of a batch as long as its longest text: int64 (batch, seq) each."""
    ids = np.zeros((len(texts), max(map(len, texts))), np.int64)
    mask = np.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return ids, mask


def pooled(states: np.ndarray, mask: np.ndarray, pooling: str) -> np.ndarray:
    """Unit vectors of padded states (batch, seq, hidden): float32 (batch, hidden)."""
    lengths = mask.sum(axis=1)
    if pooling == "MEAN":
        summed = (states * mask[:, :, np.newaxis].astype(np.float32)).sum(axis=1)
        vectors = summed / lengths[:, np.newaxis]
    else:
        rows = lengths - 1 if pooling == "LAST" else np.zeros_like(lengths)
        vectors = states[np.arange(len(states)), rows]
    unit: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit.astype(np.float32)
