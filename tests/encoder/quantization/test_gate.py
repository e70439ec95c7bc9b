"""The gate judges by the worst text."""

import numpy as np
import pytest

from plimsoll.encoder.quantization import gate
from plimsoll.encoder.quantization.gate import SHORT_TOKENS, Choice, Verdict
from plimsoll.errors import QuantizationError


def choice(worst: float) -> Choice:
    return Choice(("ffn_up",), 0, Verdict(100, 0.9999, worst))


def test_the_worst_text_decides_and_the_refusal_says_its_figure():
    """A mean hides the one text that a client asks for."""
    with pytest.raises(QuantizationError, match=r"cosine 0\.99874 .* below .* 0\.999"):
        gate.check(choice(0.99874), 0.999)
    gate.check(choice(0.999), 0.999)


def test_a_choice_is_taken_with_something_in_hand():
    """Clients' texts are others than those that were judged by."""
    assert gate.passes(choice(0.9993), 0.999)
    assert not gate.passes(choice(0.99905), 0.999)


def test_nothing_is_refused_where_nothing_is_asked():
    assert gate.passes(choice(0.3), 0)
    gate.check(choice(0.3), 0)


def test_short_texts_count_as_float32_where_they_stay_in_it():
    near, lengths = np.array([0.99, 0.9995, 0.9999]), [3, 12, 40]

    found = list(gate.choices(("ffn_up",), near, lengths))

    assert [one.short_tokens for one in found] == list(SHORT_TOKENS) == [0, 8, 16]
    assert [one.verdict.worst_cosine for one in found] == [0.99, 0.9995, 0.9999]
    assert all(one.verdict.n_texts == 3 for one in found)


def test_a_vector_that_is_not_finite_is_as_far_as_can_be():
    """NaN compares as neither better nor worse, and would pass."""
    vectors = np.array([[1.0, 0.0], [np.nan, 1.0], [0.0, 0.0]])

    np.testing.assert_array_equal(gate.cosines(vectors, np.ones((3, 2)) * [[1, 0]]), [1, 0, 0])
