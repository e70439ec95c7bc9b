"""The rule that halves and doubles, and the limit on parallelism that it makes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.policy.scaling import (
    DOUBLE_AFTER_S,
    HALVING_OUTLIVES_S,
    ResourceManager,
    scale_factor,
)


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
    assert scale_factor(utilization_ratio, tokens_per_s, 100) == factor


def test_without_a_target_nothing_is_doubled():
    """There is nothing to catch up with."""
    assert scale_factor(0.1, 0, 0) == 1


@given(
    lower=st.floats(0, 2),
    higher=st.floats(0, 2),
    tokens_per_s=st.floats(0, 1e6),
    target=st.floats(0, 1e6),
)
def test_more_memory_in_use_never_asks_for_more_parallelism(
    lower: float, higher: float, tokens_per_s: float, target: float
):
    """However far throughput is behind."""
    lower, higher = sorted((lower, higher))

    less = scale_factor(higher, tokens_per_s, target)
    assert less <= scale_factor(lower, tokens_per_s, target)


# --- the limit ------------------------------------------------------------------------------

FULL = 8


def limits(manager: ResourceManager, factor: float, used: float, *, seconds: int) -> list[int]:
    """The limit at each of so many seconds, from the clock's zero on."""
    return [manager.next(factor, used, allowed=FULL, now_s=float(at_s)) for at_s in range(seconds)]


def test_until_memory_is_short_it_sets_no_limit():
    """Doubling only takes a halving back."""
    assert set(limits(ResourceManager(), 2, 0.1, seconds=100)) == {FULL}


def test_it_halves_what_the_others_allow_and_not_itself():
    """Decisions come every second: three of them would stand at 1 before the first one shows."""
    assert limits(ResourceManager(), 0.5, 0.8, seconds=5) == [FULL // 2] * 5
    assert ResourceManager().next(0.5, 0.8, allowed=1, now_s=0) == 1


def test_a_decision_to_double_is_given_time_to_show_in_memory():
    """Two in a row would be one step too many before the first one is measured."""
    manager = ResourceManager()
    manager.next(0.5, 0.8, allowed=2, now_s=0)
    found = limits(manager, 2, 0.4, seconds=32)

    step = round(DOUBLE_AFTER_S)
    assert found == [1] * step + [2] * step + [4] * step + [FULL] * (32 - 3 * step)


@pytest.mark.parametrize(("used", "lifted"), [(0.70, True), (0.71, False)])
def test_a_halving_ends_by_itself_only_well_below_its_line(used: float, lifted: bool):
    """Where memory at rest is above half the budget, the decision to double never comes; just
    below the line raising would bring the halving straight back."""
    manager = ResourceManager()
    manager.next(0.5, 0.8, allowed=2, now_s=0)
    before, after = round(HALVING_OUTLIVES_S), round(HALVING_OUTLIVES_S) + 1
    found = limits(manager, 1, used, seconds=after)

    assert set(found[:before]) == {1}
    assert found[-1] == (2 if lifted else 1)
