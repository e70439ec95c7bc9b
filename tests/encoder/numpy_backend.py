"""A backend in plain NumPy: the same operations, written to be read, fast at nothing."""

from collections.abc import Sequence

import numpy as np
from scipy.special import erf, expit

from plimsoll.encoder.architecture import Architecture
from plimsoll.encoder.backends.protocol import Arrays, Rotation


class NumpyBackend:
    """Computes with the arrays as they are; it is its own runner, since it keeps nothing."""

    attention_is_linear = False
    pages = None

    def __init__(
        self, architecture: Architecture, embedding: Arrays, layers: Sequence[Arrays]
    ) -> None:
        self._architecture = architecture
        self._embedding = embedding
        self._layers = layers

    # --- Backend ------------------------------------------------------------------------------

    def open_runner(self, n_threads: int) -> "NumpyBackend":
        return self

    def open_whole(self, n_threads: int) -> None:
        return None

    def prepare(self, slice_tokens: int) -> None:
        pass

    def release_memory(self) -> None:
        pass

    def is_allocation_failure(self, error: Exception) -> bool:
        return isinstance(error, MemoryError)

    def close(self) -> None:
        self._embedding, self._layers = {}, ()

    # --- LayerRunner --------------------------------------------------------------------------

    def embed_norm(self, states: np.ndarray, normed: np.ndarray) -> None:
        normed[:] = self._norm(self._embedding, "token_embd_norm", states)

    def project(
        self,
        layer: int,
        states: np.ndarray,
        positions: np.ndarray,
        rotation: Rotation | None,
        outputs: tuple[np.ndarray, np.ndarray, np.ndarray],
    ) -> None:
        queries, keys, values = outputs
        weights = self._layers[layer]
        queries[:] = self._rotated(_linear(weights, "attn_q", states), positions, rotation)
        keys[:] = self._rotated(_linear(weights, "attn_k", states), positions, rotation)
        values[:] = _linear(weights, "attn_v", states)

    def attend(self, queries: np.ndarray, keys: np.ndarray, values: np.ndarray) -> None:
        scores = self._heads(queries) @ self._heads(keys).transpose(0, 2, 1)
        scores /= np.sqrt(np.float32(self._architecture.head_size))
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        context = shares @ self._heads(values)  # (heads, asking, head_size)
        queries[:] = context.transpose(1, 0, 2).reshape(queries.shape)

    def transform(self, layer: int, states: np.ndarray, context: np.ndarray) -> None:
        weights = self._layers[layer]
        attended = _linear(weights, "attn_output", context)
        middle = self._norm(weights, "attn_output_norm", states + attended)
        up = _linear(weights, "ffn_up", middle)
        if self._architecture.rotary:
            gate = _linear(weights, "ffn_gate", middle)
            active = gate * expit(gate) * up
        else:
            active = up * (1 + erf(up / np.sqrt(np.float32(2)))) / 2
        down = _linear(weights, "ffn_down", active)
        states[:] = self._norm(weights, "layer_output_norm", middle + down)

    def _norm(self, weights: Arrays, name: str, states: np.ndarray) -> np.ndarray:
        centred = states - states.mean(axis=-1, keepdims=True)
        variance = (centred**2).mean(axis=-1, keepdims=True)
        normed = centred / np.sqrt(variance + np.float32(self._architecture.layer_norm_eps))
        return normed * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def _rotated(
        self, states: np.ndarray, positions: np.ndarray, rotation: Rotation | None
    ) -> np.ndarray:
        """Turn each pair (j, j + head_size / 2) of a head by its position's angle."""
        if rotation is None:
            return states
        cos, sin = (table[positions] for table in rotation)  # (tokens, head_size / 2)
        first, second = np.split(self._heads(states), 2, axis=-1)
        turned = np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
        return turned.transpose(1, 0, 2).reshape(states.shape)

    def _heads(self, states: np.ndarray) -> np.ndarray:
        """(tokens, hidden) → (heads, tokens, head_size)."""
        return states.reshape(len(states), self._architecture.n_heads, -1).transpose(1, 0, 2)


def _linear(weights: Arrays, name: str, states: np.ndarray) -> np.ndarray:
    product = states @ weights[f"{name}.weight"].T
    bias = weights.get(f"{name}.bias")
    return product if bias is None else product + bias
