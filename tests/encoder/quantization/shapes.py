"""A small layer to quantize."""

from typing import Any

import numpy as np

from plimsoll.encoder.architecture import Architecture, Pooling, layer_tensor_shapes

ARCHITECTURE = Architecture(
    name="bert",
    n_layers=1,
    hidden=64,
    ffn=128,
    n_heads=4,
    vocabulary=1,
    context_tokens=64,
    layer_norm_eps=1e-12,
    pooling=Pooling.MEAN,
    rope_base=None,
)


def layer_arrays(kind: Any = np.float32) -> dict[str, np.ndarray]:
    """Random weights of its only layer, by their own names."""
    random = np.random.default_rng(7)
    return {
        name.split(".", 2)[2]: random.standard_normal(shape).astype(kind)
        for name, shape in layer_tensor_shapes(ARCHITECTURE, 0).items()
    }
