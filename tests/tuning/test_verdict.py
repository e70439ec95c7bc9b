"""What counts as help, and what is chance."""

from dataclasses import replace

import pytest

from plimsoll.tuning.bottleneck import Kind
from plimsoll.tuning.evidence import Evidence
from plimsoll.tuning.verdict import Measure, Outcome, judge, pressure


@pytest.mark.parametrize(
    ("before", "after", "outcome"),
    [
        (Measure(100, 10), Measure(100, 8), Outcome.KEPT),
        (Measure(100, 10), Measure(96, 8.5), Outcome.KEPT),
        (Measure(100, 10), Measure(90, 8), Outcome.REVERTED),
        (Measure(100, 10), Measure(100, 9.5), Outcome.REVERTED),
        (Measure(100, 10), Measure(110, 10.5), Outcome.KEPT),
        (Measure(100, 10), Measure(110, 15), Outcome.REVERTED),
        (Measure(100, 10), Measure(100, 0), Outcome.KEPT),
        (Measure(None, 10), Measure(100, 8), Outcome.KEPT),
        (Measure(None, 0), Measure(100, 0), Outcome.UNCLEAR),
        (Measure(100, 0), Measure(None, 0), Outcome.UNCLEAR),
    ],
)
def test_helping_is_more_speed_or_less_pressure_and_neither_at_the_others_cost(
    before: Measure, after: Measure, outcome: Outcome
):
    """Runs that are smaller save memory in any case; the question is at which price."""
    assert judge(Kind.DISK, before, after)[0] is outcome


def test_speed_says_nothing_where_others_load_has_changed():
    """A neighbour who leaves must not be taken for a remedy that works."""
    before, after = Measure(100, 0, 0.7), Measure(200, 0, 0.2)

    assert judge(Kind.MEMORY, before, after)[0] is Outcome.UNCLEAR
    assert (
        judge(Kind.MEMORY, replace(before, pressure=1), replace(after, pressure=1))[0]
        is Outcome.REVERTED
    )
    assert judge(Kind.CPU, before, after)[0] is Outcome.KEPT  # there it may be the effect


def test_a_conversion_beside_a_neighbour_that_leaves_tells_nothing():
    """Both were faster without us."""
    before, after = Measure(100, 4.0, 0.5), Measure(100, 2.0, 0.1)
    assert judge(Kind.DEQUANTIZATION, before, after)[0] is Outcome.UNCLEAR


def test_a_quota_that_hardly_ever_holds_back_is_no_pressure_to_bring_down():
    """From next to nothing to nothing is no help."""
    evidence = Evidence(seconds=8.0, throttled_ratio=0.02)
    assert pressure(Kind.CPU, evidence) == 0
    assert pressure(Kind.CPU, replace(evidence, throttled_ratio=0.3)) == 0.3
