"""The rule that halves and doubles."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.memory.scaling import scale_decision


@pytest.mark.parametrize(
    ("utilization_ratio", "tokens_per_s", "factor"),
    [
        (0.76, 10, 0.5),
        (0.76, 1000, 0.5),
        (0.75, 10, 1),  # the lines themselves are still the middle
        (0.60, 10, 1),
        (0.50, 10, 1),
        (0.49, 10, 2),
        (0.49, 100, 1),
        (0.49, 1000, 1),
        (0.0, 0, 2),
        (1.2, 0, 0.5),
    ],
)
def test_it_halves_when_memory_is_short_and_doubles_when_there_is_room_to_gain(
    utilization_ratio: float, tokens_per_s: float, factor: float
):
    """The specified rule, line by line, with a target of 100 tokens a second."""
    decision = scale_decision(utilization_ratio, tokens_per_s, 100)

    assert decision.factor == factor


def test_without_a_target_nothing_is_doubled():
    """There is nothing to catch up with."""
    assert scale_decision(0.1, 0, 0).factor == 1


@pytest.mark.parametrize(
    ("utilization_ratio", "tokens_per_s", "words"),
    [
        (0.8, 0, "above 0.75"),
        (0.6, 0, "not below 0.50"),
        (0.4, 200, "meets its target"),
        (0.4, 0, "throughput below its target"),
    ],
)
def test_a_decision_says_why(utilization_ratio: float, tokens_per_s: float, words: str):
    """An operator reads it in the log."""
    assert words in scale_decision(utilization_ratio, tokens_per_s, 100).reason


@settings(deadline=None)
@given(
    lower=st.floats(0, 2),
    higher=st.floats(0, 2),
    tokens_per_s=st.floats(0, 1e6),
    target=st.floats(0, 1e6),
)
def test_more_memory_in_use_never_asks_for_more_parallelism(
    lower: float, higher: float, tokens_per_s: float, target: float
):
    """Whatever throughput wishes."""
    lower, higher = sorted((lower, higher))

    less = scale_decision(higher, tokens_per_s, target).factor
    assert less <= scale_decision(lower, tokens_per_s, target).factor
