"""What calibration gathers is what the products of a layer take."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from plimsoll.encoder.architecture import read_architecture
from plimsoll.encoder.backends.onnx_backend import OnnxBackend
from plimsoll.encoder.weights import Weights
from plimsoll.sidecar.loader import StreamingGGUFLoader
from tests.small_models import TINY
from tests.synthetic import write_synthetic

N_TOKENS = 9


def normed(arrays: dict[str, np.ndarray], name: str, states: np.ndarray, eps: float) -> np.ndarray:
    centred = states - states.mean(axis=1, keepdims=True)
    scaled = centred / np.sqrt(centred.var(axis=1, keepdims=True) + eps)
    return scaled * arrays[f"{name}.weight"] + arrays[f"{name}.bias"]


def linear(arrays: dict[str, np.ndarray], name: str, states: np.ndarray) -> np.ndarray:
    return states @ arrays[f"{name}.weight"].T.astype(np.float64) + arrays.get(f"{name}.bias", 0)


@pytest.mark.parametrize("arch", ["bert", "nomic-bert"])
def test_what_the_products_take_is_seen_on_the_way(tmp_path: Path, arch: str):
    """Rounding must respect it; the layer goes on as it does without being watched."""
    file = write_synthetic(tmp_path / "model.gguf", arch=arch, shape=TINY)
    random = np.random.default_rng(0)
    states, context = random.standard_normal((2, N_TOKENS, TINY.hidden)).astype(np.float32)
    middle = np.empty_like(states)
    active = np.empty((N_TOKENS, TINY.ffn), np.float32)
    with closing(StreamingGGUFLoader(tmp_path, allow_memory_backed=True).load(file)) as sidecar:
        architecture = read_architecture(sidecar.header)
        weights = Weights(architecture, sidecar)
        layers = weights.layers()
        backend = OnnxBackend(architecture, weights.embedding(), layers)
        arrays = {name: array.copy() for name, array in layers[1].items()}
        expected, seen = states.copy(), states.copy()
        backend.open_runner(1).transform(1, expected, context)
        backend.open_seen_runner().transform_seen(1, seen, context, middle, active)
        backend.close()
        layers.clear()
        weights.close()

    np.testing.assert_array_equal(seen, expected)
    eps = architecture.layer_norm_eps
    attended = states + linear(arrays, "attn_output", context)
    np.testing.assert_allclose(middle, normed(arrays, "attn_output_norm", attended, eps), atol=1e-4)
    down = middle + linear(arrays, "ffn_down", active)
    np.testing.assert_allclose(seen, normed(arrays, "layer_output_norm", down, eps), atol=1e-4)
