"""Round a weight matrix to 8 bits so that its *products* change least.

GPTQ (Frantar et al., 2022) in the form of LDLQ (QuIP, Chee et al., 2023, theorem 6), which gives
the same codes without an inverse: with XᵀX = M D Mᵀ, M unit upper triangular, column k is rounded
after adding the errors of the columns before it, weighted by M[:k, k].
"""

from dataclasses import dataclass

import numpy as np

CODE_MAX = 127
DAMPING = 0.01  # of the mean diagonal
TINY = 1e-30  # of a matrix of zeros
BLOCK_COLUMNS = 128
ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Codes:
    """A matrix as integers: weight[i, j] ≈ scales[i] · codes[i, j]."""

    codes: np.ndarray  # int8 (n_out, n_in), -127 to 127
    scales: np.ndarray  # float32 (n_out,)


class SecondMoments:
    """XᵀX of the rows that pass, float32 (width, width): what rounding must respect."""

    def __init__(self, width: int) -> None:
        self._sums = np.zeros((width, width), np.float32)
        self._waiting: list[np.ndarray] = []

    def add(self, rows: np.ndarray) -> None:
        """Take in float32 rows (tokens, width), which must not change afterwards."""
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= ROWS_AT_ONCE:
            self._multiply()

    def finish(self) -> np.ndarray:
        """The sums, which are the caller's to overwrite."""
        self._multiply()
        return self._sums

    def _multiply(self) -> None:
        if self._waiting:
            rows = np.concatenate(self._waiting)
            self._waiting.clear()
            for columns in _blocks(len(self._sums), 4 * BLOCK_COLUMNS):  # no second such matrix
                self._sums[columns] += rows[:, columns].T @ rows


def row_scales(weight: np.ndarray) -> np.ndarray:
    """Scale of each row from its largest value; 1 for rows of zeros."""
    largest = np.abs(weight).max(axis=1)
    return np.where(largest > 0, largest / CODE_MAX, 1).astype(np.float32)


def coupling(moments: np.ndarray) -> np.ndarray:
    """M of XᵀX = M D Mᵀ, damped; written over `moments`, block by block from the last one on."""
    diagonal = np.einsum("ii->i", moments)
    # Inputs that never were other than zero still need a pivot.
    diagonal += DAMPING * max(float(diagonal.mean()), TINY)
    for block in reversed(_blocks(len(moments))):
        above = slice(0, block.start)
        corner = np.linalg.cholesky(moments[block, block][::-1, ::-1])[::-1, ::-1]
        panel = moments[above, block] @ np.linalg.inv(corner).T
        for rows in _blocks(block.start, 4 * BLOCK_COLUMNS):
            moments[rows, above] -= panel[rows] @ panel.T
        pivots = np.diag(corner)
        moments[block, block] = corner / pivots
        moments[above, block] = panel / pivots
        moments[block, above] = 0
    return moments


def round_for_products(weight: np.ndarray, coupled: np.ndarray) -> Codes:
    """Round float32 (n_out, n_in), with `coupling` of its inputs' second moments."""
    n_in = weight.shape[1]
    scales = row_scales(weight)
    codes = np.empty(weight.shape, np.int8)
    errors = np.zeros_like(weight)
    for columns in _blocks(n_in):
        start = columns.start
        block = weight[:, columns] + errors[:, :start] @ coupled[:start, columns]
        for column in range(start, columns.stop):
            wanted = block[:, column - start]
            wanted = wanted + errors[:, start:column] @ coupled[start:column, column]
            rounded = _rounded(wanted / scales)
            codes[:, column] = rounded
            errors[:, column] = weight[:, column] - rounded * scales
    return Codes(codes, scales)


def _rounded(values: np.ndarray) -> np.ndarray:
    rounded: np.ndarray = np.clip(np.rint(values), -CODE_MAX, CODE_MAX)
    return rounded


def _blocks(n_columns: int, size: int = BLOCK_COLUMNS) -> list[slice]:
    starts = range(0, n_columns, size)
    return [slice(start, min(start + size, n_columns)) for start in starts]
