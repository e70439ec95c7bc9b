"""A small layer to quantize, and codes without regard to products."""

from dataclasses import replace
from typing import Any

import numpy as np

from plimsoll.encoder.architecture import layer_tensor_shapes
from plimsoll.encoder.backends.onnx_probe import PROBE_ARCHITECTURE
from plimsoll.encoder.quantization.gptq import CODE_MAX, Codes, row_scales

ARCHITECTURE = replace(PROBE_ARCHITECTURE, hidden=64, ffn=128, n_heads=4, context_tokens=64)


def layer_arrays(kind: Any = np.float32) -> dict[str, np.ndarray]:
    """Random weights of its only layer, by their own names."""
    random = np.random.default_rng(7)
    return {
        name.split(".", 2)[2]: random.standard_normal(shape).astype(kind)
        for name, shape in layer_tensor_shapes(ARCHITECTURE, 0).items()
    }


def round_to_nearest(weight: np.ndarray) -> Codes:
    """Each value to the nearest code of its row."""
    scales = row_scales(weight)
    codes = np.clip(np.rint(weight / scales[:, np.newaxis]), -CODE_MAX, CODE_MAX)
    return Codes(codes.astype(np.int8), scales)
