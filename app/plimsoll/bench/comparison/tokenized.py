"""Padded ONNX Runtime and OpenVINO, over the same exported graph, fed texts.

Texts are sorted by length before they are padded in batches, as sentence-transformers does it:
padding in a list's own order would cost these two more than it costs their users.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from plimsoll.bench.comparison.naive import BATCH_TEXTS, NaivePeer, padded, pooled
from plimsoll.bench.comparison.worker import TextPeer, WorkerSpec
from plimsoll.encoder.tokenizer import WordPieceTokenizer
from plimsoll.encoder.vocabulary import read_vocabulary
from plimsoll.sidecar.sidecar import Sidecar

Encode = Callable[[Sequence[np.ndarray]], np.ndarray]


class TokenizedPeer:
    """An encoder of ids with the model's tokenizer in front of it."""

    def __init__(self, encode: Encode, tokenizer: WordPieceTokenizer, token_limit: int) -> None:
        """encode: ids of each text → unit vectors, in batches of the list's order."""
        self._encode = encode
        self._tokenizer = tokenizer
        self._token_limit = token_limit

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors float32 (texts, hidden)."""
        ids = [text.ids for text in self._tokenizer.tokenize(texts, self._token_limit)]
        order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
        vectors = self._encode([ids[index] for index in order])
        unsorted: np.ndarray = np.empty_like(vectors)
        unsorted[order] = vectors
        return unsorted


class OpenVINOEncoder:
    """OpenVINO's CPU plugin over the naive path's export."""

    def __init__(self, spec: WorkerSpec) -> None:
        """Raises ImportError without OpenVINO, ValueError where the CPU lacks the precision."""
        import openvino as ov
        from openvino import properties

        core = ov.Core()
        if spec.precision == "bfloat16":
            capabilities = core.get_property("CPU", properties.device.capabilities())
            if "BF16" not in capabilities:
                raise ValueError("this processor has no bfloat16")
        model = core.read_model(spec.path)
        if spec.precision == "int8":
            import nncf

            model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
        precision = ov.Type.bf16 if spec.precision == "bfloat16" else ov.Type.f32
        settings = {
            properties.hint.inference_precision(): precision,
            properties.inference_num_threads(): spec.n_threads,
            properties.hint.performance_mode(): properties.hint.PerformanceMode.LATENCY,
        }
        self._model = core.compile_model(model, "CPU", settings)
        self._pooling = spec.pooling

    def encode(self, texts: Sequence[np.ndarray]) -> np.ndarray:
        """Unit vectors float32 (texts, hidden), in batches of BATCH_TEXTS in the list's order."""
        rows = []
        for start in range(0, len(texts), BATCH_TEXTS):
            ids, mask = padded(texts[start : start + BATCH_TEXTS])
            states = self._model({"input_ids": ids, "attention_mask": mask})[0]
            rows.append(pooled(states, mask, self._pooling))
        return np.concatenate(rows)


def open_tokenized(spec: WorkerSpec) -> TextPeer:
    """The peer with its tokenizer, which is read from the sidecar's header."""
    sidecar = Sidecar(Path(spec.sidecar_folder))
    tokenizer = WordPieceTokenizer(read_vocabulary(sidecar.header.metadata))
    sidecar.close()
    if spec.kind == "padded":
        encode: Encode = NaivePeer(Path(spec.path), spec.pooling, n_threads=spec.n_threads).encode
    else:
        encode = OpenVINOEncoder(spec).encode
    return TokenizedPeer(encode, tokenizer, spec.token_limit)
