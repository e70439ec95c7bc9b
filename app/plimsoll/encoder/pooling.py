"""From token states to one unit vector a text.

Pure functions over NumPy arrays. Sums run in float64, so that a vector's bits do not
depend on how a sum was split.
"""

from typing import Literal, TypeAlias

import numpy as np

from plimsoll.encoder.architecture import Pooling

RowForm: TypeAlias = Literal["unit", "pooled", "tokens"]
"""What a text's row is: its vector of length 1, its vector of the length that pooling gives it,
or the states of all its tokens, float32 (tokens, hidden)."""

LAYER_NORM_EPS = 1e-5  # torch.nn.functional.layer_norm's default, as the model card uses it


def pool(token_states: np.ndarray, pooling: Pooling) -> np.ndarray:
    """One vector from one text's states.

    token_states: float32 (tokens, hidden).
    Returns float64 (hidden,).
    """
    if pooling is Pooling.MEAN:
        mean: np.ndarray = token_states.mean(axis=0, dtype=np.float64)
        return mean
    row = 0 if pooling is Pooling.CLS else -1
    vector: np.ndarray = token_states[row].astype(np.float64)
    return vector


def layer_norm(vectors: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance over each row's values, without scale or shift."""
    centred = vectors - vectors.mean(axis=-1, keepdims=True)
    normed: np.ndarray = centred / np.sqrt(
        (centred**2).mean(axis=-1, keepdims=True) + LAYER_NORM_EPS
    )
    return normed


def finish(
    vectors: np.ndarray, dimensions: int, *, norm_first: bool, form: RowForm = "unit"
) -> np.ndarray:
    """Matryoshka cut and L2 norm.

    vectors: float64 (texts, hidden), as `pool` gives them.
    norm_first: layer norm over all values before a cut, as Nomic v1.5 was trained for.
    Returns float32 (texts, dimensions) of unit rows; a row of zeros stays zero. Of the form
    "pooled" rows keep their length.
    """
    if norm_first:
        vectors = layer_norm(vectors)
    cut = vectors[:, :dimensions]
    if form == "pooled":
        return cut.astype(np.float32)
    lengths = np.linalg.norm(cut, axis=-1, keepdims=True)
    return (cut / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)
