"""A model's weights as arrays over a memory map: mapped, never loaded.

Here are the sums before the first layer, the rotary tables, and the care for each layer's pages:
checked at their first use, read ahead, given back. The layers are computed by a backend.
"""

import math
import mmap
from collections.abc import Sequence

import numpy as np

from plimsoll.encoder.architecture import (
    QKV_PARTS,
    Architecture,
    embedding_tensor_shapes,
    layer_tensor_shapes,
)
from plimsoll.encoder.backends.protocol import Arrays, Rotation
from plimsoll.encoder.layout import FLOAT_BYTES, SLICE_TOKENS
from plimsoll.encoder.quantization.codes_file import CodesFile
from plimsoll.encoder.quantization.linears import float32_names, rotated_biases
from plimsoll.sidecar.sidecar import Sidecar

ROPE_FACTOR = 2
NORM_NAMES = ("token_embd_norm.weight", "token_embd_norm.bias")


class Weights:
    """Read-only weights of one model, some of them as codes. Its files are closed after it."""

    def __init__(
        self, architecture: Architecture, sidecar: Sidecar, codes: CodesFile | None = None
    ) -> None:
        """codes: stand for the weights of some linears."""
        self._architecture = architecture
        self._sidecar = sidecar
        self._codes = codes
        self._layer_names = [
            _names(architecture, layer, codes) for layer in range(architecture.n_layers)
        ]
        self._verified_layers: set[int] = set()
        self._verified_tokens = np.zeros(architecture.vocabulary, bool)
        self._tokens = sidecar.array("token_embd.weight")
        # Rows of it lie apart: the kernel would read 128 KiB around each.
        sidecar.advise(["token_embd.weight"], mmap.MADV_RANDOM)
        self._token_type = (
            sidecar.array("token_types.weight")[0] if architecture.token_types else None
        )
        self._positions = None if architecture.rotary else sidecar.array("position_embd.weight")
        self._rotation = (
            rotary_tables(
                architecture.rope_base,
                architecture.head_size,
                # An operator takes no more rows than its tables have, whatever their positions.
                max(architecture.context_tokens, SLICE_TOKENS),
                architecture.rope_factor,
            )
            if architecture.rope_base is not None
            else None
        )
        for name in embedding_tensor_shapes(architecture):
            if name != "token_embd.weight":
                sidecar.verify(name)

    def embedding(self) -> Arrays:
        """Views of the first norm's weights, which belong to no block."""
        return {name: self._sidecar.array(name) for name in NORM_NAMES}

    def layers(self) -> list[Arrays]:
        """Views of each block's weights; to be dropped before `close`."""
        return layer_arrays(self._architecture, self._sidecar, self._codes)

    @property
    def coded_bytes(self) -> int:
        """Bytes of the float32 weights that codes stand for."""
        if self._codes is None:
            return 0
        return sum(
            FLOAT_BYTES * math.prod(shape)
            for layer, names in enumerate(self._layer_names)
            for name, shape in layer_tensor_shapes(self._architecture, layer).items()
            if name not in names
        )

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
        if self._token_type is not None:
            states += self._token_type
        if self._positions is not None:
            states += self._positions[positions]
        return states

    def verify_tokens(self, texts: Sequence[np.ndarray]) -> None:
        """Check the rows of the vocabulary table that a run of these texts reads."""
        ids = np.concatenate(texts)
        row_bytes = FLOAT_BYTES * self._architecture.hidden
        for token in np.unique(ids[~self._verified_tokens[ids]]).tolist():
            self._sidecar.verify("token_embd.weight", token * row_bytes, (token + 1) * row_bytes)
            self._verified_tokens[token] = True

    def check_unchanged(self) -> None:
        """See that sidecar and codes are as they were when mapped. Raises CacheCorruptError."""
        self._sidecar.check_unchanged()
        if self._codes is not None:
            self._codes.check_unchanged()

    def enter_layer(self, layer: int, *, prefetch: bool, is_scarce: bool = False) -> None:
        """Check a block before its first use; with `prefetch`, start reading the next one."""
        if prefetch:
            following = (layer + 1) % self._architecture.n_layers
            self._sidecar.advise(self._layer_names[following], mmap.MADV_WILLNEED)
            if self._codes is not None:
                self._codes.advise(following, mmap.MADV_WILLNEED)
        if layer not in self._verified_layers:  # every run asks; going over names takes its time
            for name in self._layer_names[layer]:
                self._sidecar.verify(name)
            if self._codes is not None:
                self._codes.verify(layer)
            self._verified_layers.add(layer)

    def drop_layer(self, layer: int, *, evict: bool) -> None:
        """Give a block's pages back to the kernel; they are read again at the next use.

        With `evict` they leave the file cache at once, instead of when their memory is wanted.
        """
        self._sidecar.advise(self._layer_names[layer], mmap.MADV_DONTNEED)
        if self._codes is not None:
            self._codes.advise(layer, mmap.MADV_DONTNEED)
            if evict:
                self._codes.evict(layer)
        if evict:
            self._sidecar.evict(self._layer_names[layer])

    def close(self) -> None:
        """Drop every view; the backend has dropped its own before."""
        del self._tokens, self._token_type, self._positions


def layer_arrays(
    architecture: Architecture, sidecar: Sidecar, codes: CodesFile | None = None
) -> list[Arrays]:
    """Views of each block's weights and codes, not verified; dropped before the files close."""
    found: list[Arrays] = []
    for layer in range(architecture.n_layers):
        arrays = _layer(sidecar, _names(architecture, layer, codes))
        if codes is not None:
            arrays |= codes.arrays(layer) | rotated_biases(architecture, arrays)
        found.append(arrays)
    return found


def _names(architecture: Architecture, layer: int, codes: CodesFile | None) -> list[str]:
    return float32_names(architecture, layer, codes.index.choice.linears if codes else ())


def _layer(sidecar: Sidecar, names: list[str]) -> dict[str, np.ndarray]:
    arrays = {name.split(".", 2)[2]: sidecar.array(name) for name in names}
    for kind in ("weight", "bias"):
        fused = arrays.pop(f"attn_qkv.{kind}", None)
        if fused is not None:
            for part, rows in zip(QKV_PARTS, np.split(fused, 3), strict=True):
                arrays[f"{part}.{kind}"] = rows
    return arrays


def scaled_rope_base(architecture: Architecture, n_tokens: int) -> float:
    """Rotary base of a text longer than the model was trained for.

    Dynamic NTK scaling with a factor of 2, as Nomic's model card and transformers' dynamic rope
    have it: base · (2 · n / trained - 1)^(d / (d - 2)), d being the size of a head.
    """
    assert architecture.rope_base is not None  # noqa: S101 - only asked where positions rotate
    growth = ROPE_FACTOR * n_tokens / architecture.context_tokens - (ROPE_FACTOR - 1)
    size = architecture.head_size
    return float(architecture.rope_base * growth ** (size / (size - 2)))


def rotary_tables(base: float, head_size: int, n_positions: int, factor: float = 1.0) -> Rotation:
    """Cosines and sines of every position, float32 (n_positions, head_size / 2).

    Angle of pair j at position p: p · base^(-2j / head_size) / factor, computed in float32 as
    the reference implementations do; a factor other than 1 is llama.cpp's linear scaling.
    """
    exponents = np.arange(0, head_size, 2, dtype=np.float32) / np.float32(head_size)
    inverse_frequencies = (1.0 / np.power(np.float32(base), exponents)).astype(np.float32)
    angles = np.arange(n_positions, dtype=np.float32)[:, np.newaxis] * inverse_frequencies
    angles *= np.float32(1.0 / factor)
    return np.cos(angles), np.sin(angles)
