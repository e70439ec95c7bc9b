"""Take calibration texts through the float32 layers, and round each layer on its way.

What a layer's products take is gathered from the float32 model, text by text, as second moments;
a text counts alike however long it is, as it does for its vector. Bounded: one layer's moments,
one text's intermediates, and the states between two layers.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from plimsoll.encoder.architecture import Architecture
from plimsoll.encoder.backends.protocol import Arrays, SeenRunner
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
        runner: SeenRunner,
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
        gathered = self._gather()
        self._weights.drop_layer(self._layer, evict=False)
        self._layer += 1
        codes: dict[str, Codes] = {}
        for taken, names in linear_names(self._architecture).items():
            coupled = coupling(gathered.pop(taken).finish())
            for name in names:
                weight = rotated_weight(self._architecture, name, arrays)
                codes[name] = round_for_products(weight, coupled)
        return codes

    def _gather(self) -> dict[str, SecondMoments]:
        blocks = input_blocks(self._architecture)
        widths = dict.fromkeys(blocks, self._architecture.hidden)
        widths["active"] = self._architecture.ffn
        gathered = {taken: SecondMoments(width) for taken, width in widths.items()}
        for states in self._states:
            for taken, rows in self._advance(states).items():
                share = np.float32(1 / np.sqrt(len(rows)))
                gathered[taken].add(rotate(rows, blocks[taken]) * share)
        return gathered

    def _advance(self, states: np.ndarray) -> Mapping[str, np.ndarray]:
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
        middle = np.empty_like(states)
        active = np.empty((n_tokens, self._architecture.ffn), np.float32)
        self._runner.transform_seen(self._layer, states, queries, middle, active)
        return {"states": before, "context": queries, "middle": middle, "active": active}
