"""Rotate rows block by block, so that outliers spread over a block and 8 bits go further.

A Hadamard matrix of n rows holds ±1; divided by √n it is orthogonal and its own transpose. So
(x R) · (w R) = x · w: what is done to an activation is undone by doing it to the weight's rows.
"""

from functools import cache

import numpy as np
import numpy.typing as npt

LARGEST_BLOCK = 64  # twice as large costs twice as much at run time, and gains nothing


def block_size(width: int) -> int:
    """The largest power of two, up to LARGEST_BLOCK, that divides `width`."""
    return min(LARGEST_BLOCK, width & -width)


@cache
def hadamard(size: int, kind: npt.DTypeLike = np.float32) -> np.ndarray:
    """The orthogonal symmetric matrix of `size`, a power of two, by Sylvester's doubling."""
    if size < 1 or size & (size - 1):
        raise ValueError(f"{size} is not a power of two")
    matrix: np.ndarray = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    scaled: np.ndarray = (matrix / np.sqrt(size)).astype(kind)
    scaled.flags.writeable = False  # callers share it
    return scaled


def rotate(rows: np.ndarray, size: int) -> np.ndarray:
    """Rotate each block of `size` values of every row: (rows, width), in the rows' own type."""
    turned: np.ndarray = rows.reshape(-1, size) @ hadamard(size, rows.dtype)
    return turned.reshape(rows.shape)
