"""Which products of a layer may be int8, and what each of them takes, rotated how."""

from collections.abc import Collection, Mapping
from typing import TypeAlias

import numpy as np

from plimsoll.encoder.architecture import QKV_PARTS, Architecture, layer_tensor_shapes
from plimsoll.encoder.backends.protocol import Arrays
from plimsoll.encoder.quantization.gptq import Codes
from plimsoll.encoder.quantization.hadamard import block_size, rotate

LayerCodes: TypeAlias = Mapping[str, Codes]
"""Codes by GGUF's names without their kind: `ffn_down`."""

DOWN = "ffn_down"


def linear_names(architecture: Architecture) -> dict[str, tuple[str, ...]]:
    """Names of the linears by what they take: the layer's states, attention's output, …"""
    feed_forward = ("ffn_gate", "ffn_up") if architecture.rotary else ("ffn_up",)
    return {
        "states": QKV_PARTS,
        "context": ("attn_output",),
        "middle": feed_forward,
        "active": (DOWN,),
    }


def float32_names(architecture: Architecture, layer: int, coded: Collection[str]) -> list[str]:
    """Names of a layer's tensors that are read in float32, where codes stand for some linears."""

    def is_coded(name: str) -> bool:
        _, _, linear, kind = name.split(".")  # blk.N.name.weight
        parts = QKV_PARTS if linear == "attn_qkv" else (linear,)
        return kind == "weight" and all(part in coded for part in parts)

    return [name for name in layer_tensor_shapes(architecture, layer) if not is_coded(name)]


def input_blocks(architecture: Architecture) -> dict[str, int]:
    """Block of the rotation of each input; attention's output has that of a head."""
    hidden = block_size(architecture.hidden)
    return {
        "states": hidden,
        "context": block_size(architecture.head_size),
        "middle": hidden,
        "active": block_size(architecture.ffn),
    }


def rotated_weight(architecture: Architecture, name: str, arrays: Arrays) -> np.ndarray:
    """A linear's weight as its codes stand for it, float32 (n_out, n_in).

    Columns are turned as the input is. Rows of the values are turned too, head by head, so that
    attention's output comes out turned: it is a sum of values.
    """
    blocks = input_blocks(architecture)
    taken = next(taken for taken, names in linear_names(architecture).items() if name in names)
    weight = rotate(arrays[f"{name}.weight"], blocks[taken])
    if name == "attn_v":
        weight = np.ascontiguousarray(rotate(weight.T.copy(), blocks["context"]).T)
    return weight


def rotated_biases(architecture: Architecture, arrays: Arrays) -> dict[str, np.ndarray]:
    """Biases that differ where attention is int8: that of the values."""
    bias = arrays.get("attn_v.bias")
    if bias is None:
        return {}
    block = input_blocks(architecture)["context"]
    return {"attn_v.bias": rotate(bias[np.newaxis], block)[0]}
