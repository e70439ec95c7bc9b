"""A model's weights as ONNX Runtime values over a memory map: mapped, never loaded.

Names are those of the graphs' inputs (`attn_q.weight` …), the block's prefix taken off.
Each layer's checksums are compared at its first use in this process.
"""

import mmap
from collections.abc import Sequence

import numpy as np

from app.encoder.architecture import (
    Architecture,
    embedding_tensor_shapes,
    layer_tensor_shapes,
)
from app.encoder.session import Tensors, as_value
from app.gguf.sidecar import Sidecar

ROPE_FACTOR = 2

Rotation = tuple[np.ndarray, np.ndarray]
"""Cosines and sines of every position, each float32 (positions, head_size / 2)."""


class Weights:
    """Read-only weights of one model; owns the sidecar."""

    def __init__(self, architecture: Architecture, sidecar: Sidecar) -> None:
        self._architecture = architecture
        self._sidecar = sidecar
        self._layer_names = [
            list(layer_tensor_shapes(architecture, layer)) for layer in range(architecture.n_layers)
        ]
        self._tokens = sidecar.array("token_embd.weight")
        self._token_type = sidecar.array("token_types.weight")[0]
        self._positions = None if architecture.rotary else sidecar.array("position_embd.weight")
        self._layers = [self._layer(names) for names in self._layer_names]
        self._embedding: dict[str, object] = {
            name: as_value(sidecar.array(name))
            for name in ("token_embd_norm.weight", "token_embd_norm.bias")
        }
        self._rotation = (
            rotary_tables(
                architecture.rope_base, architecture.head_size, architecture.context_tokens
            )
            if architecture.rope_base is not None
            else None
        )
        for name in embedding_tensor_shapes(architecture):
            if name != "token_embd.weight":
                sidecar.verify(name)

    def layer(self, layer: int) -> Tensors:
        """Graph inputs of one block."""
        return self._layers[layer]

    def embedding(self) -> Tensors:
        """Graph inputs that belong to no block: the first norm."""
        return self._embedding

    def rotation(self, n_tokens: int) -> Rotation | None:
        """Rotary tables for a text of so many tokens; None where positions are learned.

        Beyond the length that the model was trained for the base grows with the text's own
        length, so such tables are made for one text.
        """
        architecture = self._architecture
        if self._rotation is None or n_tokens <= architecture.context_tokens:
            return self._rotation
        base = scaled_rope_base(architecture, n_tokens)
        return rotary_tables(base, architecture.head_size, n_tokens)

    def embed(self, ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Sum of token, type and (where learned) position embeddings: float32 (tokens, hidden)."""
        states: np.ndarray = self._tokens[ids]
        states += self._token_type
        if self._positions is not None:
            states += self._positions[positions]
        return states

    def verify_tokens(self, wave: Sequence[np.ndarray]) -> None:
        """Check the rows of the vocabulary table that this wave reads."""
        row_bytes = 4 * self._architecture.hidden
        for token in np.unique(np.concatenate(wave)):
            self._sidecar.verify("token_embd.weight", token * row_bytes, (token + 1) * row_bytes)

    def enter_layer(self, layer: int, *, prefetch: bool) -> None:
        """Check a block before its first use; with `prefetch`, start reading the next one."""
        if prefetch:
            following = (layer + 1) % self._architecture.n_layers
            self._sidecar.advise(self._layer_names[following], mmap.MADV_WILLNEED)
        for name in self._layer_names[layer]:
            self._sidecar.verify(name)

    def drop_layer(self, layer: int, *, evict: bool) -> None:
        """Give a block's pages back to the kernel; they are read again at the next use.

        With `evict` they leave the file cache at once, instead of when their memory is wanted.
        """
        self._sidecar.advise(self._layer_names[layer], mmap.MADV_DONTNEED)
        if evict:
            self._sidecar.evict(self._layer_names[layer])

    def close(self) -> None:
        """Release every view and unmap; the caller has dropped all bindings before."""
        self._layers.clear()
        self._embedding.clear()
        del self._tokens, self._token_type, self._positions
        self._sidecar.close()

    def _layer(self, names: list[str]) -> Tensors:
        arrays = {name.split(".", 2)[2]: self._sidecar.array(name) for name in names}
        qkv = arrays.pop("attn_qkv.weight", None)
        if qkv is not None:
            hidden = self._architecture.hidden
            for i, part in enumerate(("attn_q", "attn_k", "attn_v")):
                arrays[f"{part}.weight"] = qkv[i * hidden : (i + 1) * hidden]
        return {name: as_value(array) for name, array in arrays.items()}


def scaled_rope_base(architecture: Architecture, n_tokens: int) -> float:
    """Rotary base of a text longer than the model was trained for.

    Dynamic NTK scaling with a factor of 2, as Nomic's model card and transformers' dynamic rope
    have it: base · (2 · n / trained - 1)^(d / (d - 2)), d being the size of a head.
    """
    assert architecture.rope_base is not None  # noqa: S101 - only asked where positions rotate
    growth = ROPE_FACTOR * n_tokens / architecture.context_tokens - (ROPE_FACTOR - 1)
    size = architecture.head_size
    return float(architecture.rope_base * growth ** (size / (size - 2)))


def rotary_tables(base: float, head_size: int, n_positions: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of every position, float32 (n_positions, head_size / 2).

    Angle of pair j at position p: p · base^(-2j / head_size), computed in float32 as the
    reference implementation does.
    """
    exponents = np.arange(0, head_size, 2, dtype=np.float32) / np.float32(head_size)
    inverse_frequencies = (1.0 / np.power(np.float32(base), exponents)).astype(np.float32)
    angles = np.arange(n_positions, dtype=np.float32)[:, np.newaxis] * inverse_frequencies
    return np.cos(angles), np.sin(angles)
