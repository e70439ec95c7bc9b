"""Texts whose vectors are known from the quiet server, to compare with those under load."""

from collections.abc import Sequence

import numpy as np

from plimsoll.bench.load.report import Verification

TOLERANCE = 1e-6  # packing with other texts may move a value that far


class Samples:
    """Owns the quiet vectors and what comparing with them has found."""

    def __init__(
        self, texts: Sequence[str], vectors: Sequence[Sequence[float]], tolerance: float
    ) -> None:
        """`texts` and `vectors` belong together; tolerance: 0 for bit by bit."""
        self.texts = texts
        self._vectors = [np.array(vector, np.float64) for vector in vectors]
        self._tolerance = tolerance
        self._n_compared = 0
        self._n_wrong = 0
        self._largest_difference = 0.0

    def agree(self, number: int, vector: Sequence[float] | None) -> bool:
        """Whether a vector under load is that of text `number`."""
        self._n_compared += 1
        expected = self._vectors[number]
        try:
            found = np.array(vector, np.float64)
        except (TypeError, ValueError):  # not numbers
            found = np.empty(0)
        if found.shape != expected.shape:
            self._n_wrong += 1
            return False
        difference = float(np.abs(found - expected).max())
        self._largest_difference = max(self._largest_difference, difference)
        self._n_wrong += difference > self._tolerance
        return difference <= self._tolerance

    def verification(self) -> Verification:
        """What has been found so far."""
        return Verification(
            len(self.texts), self._n_compared, self._n_wrong, self._largest_difference
        )
