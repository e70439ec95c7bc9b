"""Take calibration texts through the float32 layers, and round each layer on its way.

What a layer's products take is gathered from the float32 model, text by text, as second moments;
a text counts alike however long it is, as it does for its vector. Bounded: one layer's moments,
one text's intermediates, and the states between two layers.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from plimsoll.encoder.architecture import Architecture
from plimsoll.encoder.backends.protocol import Arrays, LayerRunner
from plimsoll.encoder.quantization.gptq import Codes, SecondMoments, coupling, round_for_products
from plimsoll.encoder.quantization.hadamard import rotate
from plimsoll.encoder.quantization.linears import input_blocks, linear_names, rotated_weight
from plimsoll.encoder.weights import Weights


class Calibration:
    """Owns the texts' states, which are those before the layer that comes next."""

    def __init__(
        self,
        architecture: Architecture,
        weights: Weights,
        runner: LayerRunner,
        texts: Sequence[np.ndarray],
    ) -> None:
        """texts: int64 token ids of each, at least 2 long."""
        self._architecture = architecture
        self._weights = weights
        self._runner = runner
        self._layer = 0
        self._states: list[np.ndarray] = []
        weights.verify_tokens(texts)
        for ids in texts:
            embedded = weights.embed(ids, np.arange(len(ids), dtype=np.int64))
            runner.embed_norm(embedded, embedded)
            self._states.append(embedded)

    def round_layer(self, arrays: Arrays) -> dict[str, Codes]:
        """Codes of the next layer's linears. arrays: the layer's weights."""
        self._weights.enter_layer(self._layer, prefetch=True)
        gathered = self._gather(arrays)
        self._weights.drop_layer(self._layer, evict=False)
        self._layer += 1
        codes: dict[str, Codes] = {}
        for taken, names in linear_names(self._architecture).items():
            coupled = coupling(gathered.pop(taken).finish())
            for name in names:
                weight = rotated_weight(self._architecture, name, arrays)
                codes[name] = round_for_products(weight, coupled)
        return codes

    def _gather(self, arrays: Arrays) -> dict[str, SecondMoments]:
        blocks = input_blocks(self._architecture)
        widths = dict.fromkeys(blocks, self._architecture.hidden)
        widths["active"] = self._architecture.ffn
        gathered = {taken: SecondMoments(width) for taken, width in widths.items()}
        for states in self._states:
            for taken, rows in self._advance(states, arrays).items():
                share = np.float32(1 / np.sqrt(len(rows)))
                gathered[taken].add(rotate(rows, blocks[taken]) * share)
        return gathered

    def _advance(self, states: np.ndarray, arrays: Arrays) -> Mapping[str, np.ndarray]:
        """Take one text through the layer, in place; what its products took."""
        n_tokens = len(states)
        before = states.copy()
        queries, keys, values = np.empty((3, *states.shape), np.float32)
        positions = np.arange(n_tokens, dtype=np.int64)
        self._runner.project(
            self._layer,
            states,
            positions,
            self._weights.rotation(n_tokens),
            (queries, keys, values),
        )
        self._runner.attend(queries, keys, values)
        self._runner.transform(self._layer, states, queries)
        middle = self._norm(before + _linear(arrays, "attn_output", queries), arrays)
        return {
            "states": before,
            "context": queries,
            "middle": middle,
            "active": self._activated(middle, arrays),
        }

    def _norm(self, states: np.ndarray, arrays: Arrays) -> np.ndarray:
        centred = states - states.mean(axis=-1, keepdims=True)
        variance = np.mean(centred**2, axis=-1, keepdims=True)
        normed = centred / np.sqrt(variance + np.float32(self._architecture.layer_norm_eps))
        result: np.ndarray = normed * arrays["attn_output_norm.weight"]
        result += arrays["attn_output_norm.bias"]
        return result

    def _activated(self, middle: np.ndarray, arrays: Arrays) -> np.ndarray:
        up = _linear(arrays, "ffn_up", middle)
        if self._architecture.rotary:
            gate = _linear(arrays, "ffn_gate", middle)
            return np.asarray(up * gate / (1 + np.exp(-gate)))
        # GELU by tanh, which NumPy has: second moments do not feel the difference from erf.
        slope = np.float32(np.sqrt(2 / np.pi)) * (up + np.float32(0.044715) * up**3)
        return np.asarray(up / 2 * (1 + np.tanh(slope)))


def _linear(arrays: Arrays, name: str, states: np.ndarray) -> np.ndarray:
    product: np.ndarray = states @ arrays[f"{name}.weight"].T
    bias = arrays.get(f"{name}.bias")
    return product if bias is None else product + bias
