"""The memory table: its lines in one place, and where admission's line lies for a high rest."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.policy import lines
from plimsoll.policy.lines import OPEN_RATIO, TABLE, admission_ratio

RESTS = st.floats(0.0, 1.5)


# --- admission's line -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rest_ratio", "line_ratio"),
    [
        (0.0, 0.70),
        (0.30, 0.70),
        (0.60, 0.70),
        (0.65, 0.7333),
        (0.70, 0.7667),
        (0.90, 0.90),
        (1.20, 0.90),
    ],
)
def test_the_line_is_at_0_70_or_a_third_of_the_way_from_rest_to_the_breaker(
    rest_ratio: float, line_ratio: float
):
    """As DESIGN has it, with its own figures."""
    assert admission_ratio(rest_ratio) == pytest.approx(line_ratio, abs=5e-5)


@given(RESTS, RESTS)
def test_the_line_has_no_cliff(lower: float, higher: float):
    """A rest that differs by one byte must not double what may be admitted: the line rises with
    rest, and by less than rest does."""
    lower, higher = sorted((lower, higher))
    rise = admission_ratio(higher) - admission_ratio(lower)

    assert -1e-12 <= rise <= higher - lower + 1e-12


@given(RESTS)
def test_no_rest_brings_the_line_above_the_breakers(rest_ratio: float):
    """What is admitted up to there would open the breaker itself."""
    assert lines.HIGH_RATIO <= admission_ratio(rest_ratio) <= OPEN_RATIO


@given(st.floats(0.0, OPEN_RATIO - 0.01))
def test_below_the_breakers_line_there_is_always_room_above_rest(rest_ratio: float):
    """A server that can admit nothing at rest is of no use to any client."""
    assert admission_ratio(rest_ratio) - rest_ratio >= 0.003


# --- the table ------------------------------------------------------------------------------

WORDS = "\n".join(" ".join((row.when, *row.effects)) for row in TABLE)


@pytest.mark.parametrize(
    "said",
    [
        f"used memory below {lines.HIGH_RATIO:.2f}",
        f"used memory above {lines.HIGH_RATIO:.2f}",
        f"used memory above {lines.HALVE_ABOVE_RATIO:.2f}",
        f"working set above {lines.WORKING_SET_RATIO:.2f}",
        f"stalls above {lines.STALLS_RATIO:.2f}",
        f"above {lines.REFAULTS_PER_S:g} pages a second for {lines.REFAULTS_SUSTAINED_S:g} s",
        f"disk stalls above {lines.DISK_STALLS_RATIO:.2f} while pages are read again",
        f"{lines.FAILURES} memory failures in {lines.FAILURES_WINDOW_S:g} s",
        f"used memory above {lines.OPEN_RATIO:.2f} for {lines.OPEN_AFTER_S:g} s",
        f"closed below {lines.CLOSE_RATIO:.2f}",
        f"parallelism up to {lines.FULL_PARALLELISM}",
        f"parallelism {lines.HIGH_PARALLELISM}",
    ],
)
def test_the_table_says_every_line_with_its_number(said: str):
    """Log, page and README show the table: a line that it leaves out takes readers by surprise."""
    assert said in WORDS


def test_the_table_has_every_step_in_its_order():
    """Modules go by the numbers of the steps, readers by the rows and the names."""
    steps = [row.step for row in TABLE]

    assert steps == sorted(steps)
    assert set(steps) == {0, 1, lines.DROPPING_STEP, lines.WAITING_STEP, lines.BREAKER_STEP}
    assert set(steps) == set(range(len(lines.STEP_NAMES)))
    assert all(row.when and row.effects for row in TABLE)


def test_only_used_memory_is_said_to_lower_parallelism():
    """Working set, stalls and refaults set the same step, but fewer sequences would not help: a
    table that promised them would send an operator after a fault that is none."""
    by_used, by_files = (row for row in TABLE if row.step == lines.DROPPING_STEP)

    assert "half of that parallelism" in by_used.effects
    assert "half of that parallelism" not in by_files.effects
    assert any("parallelism stays" in effect for effect in by_files.effects)
    assert set(by_used.effects) & set(by_files.effects)  # both drop pages and close idle models


@pytest.mark.parametrize(
    ("step", "causes", "row"),
    [
        (0, (), 0),
        (1, (lines.HIGH,), 1),
        (2, (lines.VERY_HIGH,), 2),
        (2, (lines.STALLS, lines.VERY_HIGH), 2),
        (2, (lines.STALLS,), 3),
        (2, (lines.WORKING_SET, lines.REFAULTS), 3),
        (2, (lines.DISK_STALLS,), 3),
        (3, (), 4),
        (3, (lines.VERY_HIGH,), 4),
        (4, (), 5),
    ],
)
def test_the_effects_of_a_step_are_those_of_its_row(step: int, causes: tuple[str, ...], row: int):
    """Log and page say what is done now; step 2 has two rows, which its causes tell apart."""
    assert lines.effects(step, causes) == TABLE[row].effects


def test_the_lines_rise_from_saving_to_refusing():
    """Each step is there to keep the next one from coming."""
    rising = [
        lines.DOUBLE_BELOW_RATIO,
        lines.CLOSE_RATIO,
        lines.HIGH_RATIO,
        lines.HALVE_ABOVE_RATIO,
        lines.FALLBACK_RATIO,
        lines.OPEN_RATIO,
    ]
    assert rising == sorted(set(rising))
