"""What a simulation reads and what it prints: traces, percentiles, charts."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plimsoll.policy.breaker import BreakerState
from plimsoll.simulation.report import Fate, RequestRecord, Second, SimulationReport
from plimsoll.simulation.text import COLUMNS, RULE, render
from plimsoll.simulation.trace import (
    Arrival,
    ExtraMemory,
    MemoryFailure,
    Processors,
    Rereading,
    parse_trace,
)

CLOSED, OPEN = BreakerState.CLOSED, BreakerState.OPEN

# --- traces ---------------------------------------------------------------------------------


def test_a_trace_is_read_line_by_line():
    """Blank lines are nothing; order is free."""
    lines = [
        b'{"at_s": 2, "tokens": [32, 128]}\n',
        b"\n",
        b'{"used_bytes_extra": 1000, "at_s": 0.5}\n',
        b'{"at_s": 1.5, "memory_failure": true}',
        b'{"at_s": 1.6, "memory_failure": true, "for_s": 2}',
        b'{"at_s": 3, "cores": 1.5}',
        b'{"at_s": 4, "others": 0.3, "cores": 2}',
        b'{"at_s": 5, "reread_s": 0.4}',
        b'{"at_s": 6, "retries": 2, "tokens": [1]}',
    ]

    assert parse_trace(lines) == [
        Arrival(2.0, (32, 128)),
        ExtraMemory(0.5, 1000),
        MemoryFailure(1.5),
        MemoryFailure(1.6, 2.0),
        Processors(3.0, 1.5),
        Processors(4.0, 2.0, 0.3),
        Rereading(5.0, 0.4),
        Arrival(6.0, (1,), n_retries=2),
    ]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("tokens", "no JSON"),
        ("[" * 5000, "no JSON"),
        ('{"at_s": NaN, "tokens": [1]}', "no JSON"),
        ("[1]", r"not an object but \[1\]"),
        ('{"tokens": [1]}', "at_s is null"),
        ('{"at_s": true, "tokens": [1]}', "at_s is true"),
        ('{"at_s": -1, "tokens": [1]}', "at_s is -1"),
        ('{"at_s": 86401, "tokens": [1]}', "from 0 to 86400"),
        ('{"at_s": 1}', "beside at_s"),
        ('{"at_s": 1, "token": [1]}', r'this has \{"token":\[1\]\}'),
        ('{"at_s": 1, "tokens": [1], "memory_failure": true}', "beside at_s"),
        ('{"at_s": 1, "memory_failure": false}', "beside at_s"),
        ('{"at_s": 1, "memory_failure": 1}', "beside at_s"),
        ('{"at_s": 1, "tokens": []}', r"tokens is \[\]"),
        ('{"at_s": 1, "tokens": 5}', "tokens is 5"),
        ('{"at_s": 1, "tokens": [1, 0]}', "tokens holds 0"),
        ('{"at_s": 1, "tokens": [1.5]}', r"tokens holds 1\.5"),
        ('{"at_s": 1, "tokens": [true]}', "tokens holds true"),
        ('{"at_s": 1, "tokens": [1000001]}', "from 1 to 1000000"),
        ('{"at_s": 1, "tokens": [1], "retries": 1.5}', "retries is 1.5"),
        ('{"at_s": 1, "tokens": [1], "retries": 101}', "from 0 to 100"),
        ('{"at_s": 1, "retries": 2}', "beside at_s"),
        ('{"at_s": 1, "cores": "two"}', 'cores is "two"'),
        ('{"at_s": 1, "cores": 2, "others": 1.5}', "others is 1.5, not a number from 0 to 1"),
        ('{"at_s": 1, "others": 0.5}', "beside at_s"),
        ('{"at_s": 1, "reread_s": -1}', "reread_s is -1"),
        ('{"at_s": 1, "used_bytes_extra": -5}', "used_bytes_extra is -5"),
        ('{"at_s": 1, "used_bytes_extra": "1M"}', 'used_bytes_extra is "1M"'),
    ],
)
def test_a_line_that_is_none_of_the_events_is_named_by_its_number(line: str, told: str):
    """A misspelt trace must not pass for a quiet one."""
    with pytest.raises(ValueError, match=f"^line 3: .*{told}"):
        parse_trace([b'{"at_s": 1, "tokens": [1]}', b"", line.encode()])


# --- the report -----------------------------------------------------------------------------


def report_of(seconds: Sequence[Second] = (), waits: Sequence[float] = ()) -> SimulationReport:
    requests = [RequestRecord(0.0, 1, 5, 1, Fate.DENSE, None, wait_s, wait_s) for wait_s in waits]
    peak_bytes = max((second.used_bytes for second in seconds), default=0)
    return SimulationReport(1000, 700, peak_bytes, requests, [], seconds)


@given(
    waits=st.lists(st.floats(0, 100), min_size=1, max_size=200),
    percent=st.integers(1, 100),
)
def test_percentiles_are_the_smallest_value_that_so_many_do_not_pass(
    waits: list[float], percent: int
):
    """NumPy is the oracle."""
    expected = np.percentile(waits, percent, method="inverted_cdf")

    assert report_of(waits=waits).wait_s(percent) == expected
    assert report_of(waits=waits).answered_s(percent) == expected


def test_the_chart_shows_each_seconds_memory_against_line_and_limit():
    """People look before they read: a column of half the limit is five of ten rows high."""
    seconds = [
        Second(at_s, used, parallelism, 0, CLOSED, 0, 0)
        for at_s, used, parallelism in ((1, 500, 8), (2, 700, 8), (3, 1000, 2), (4, 0, 2))
    ]
    chart = render(report_of(seconds)).split("a column\n")[1].splitlines()

    columns = [line[18:].ljust(4) for line in chart[:10]]
    heights = ["".join(column).count("█") for column in zip(*columns, strict=True)]
    assert heights == [5, 7, 10, 0]
    assert [line.split()[0] for line in chart if RULE in line] == ["limit", "line"]
    assert columns[2] == f"{RULE}{RULE}█{RULE}"  # above the seven rows of the line
    assert chart[10].split() == ["parallelism", "8822"]


def test_a_long_simulation_is_charted_in_as_many_columns_as_fit():
    """No second is lost: a column shows the worst of its seconds."""
    seconds = [Second(at_s, 100, 8, 0, CLOSED, 0, 0) for at_s in range(1, 1000)]
    seconds[500] = Second(501, 1000, 1, 4, OPEN, 0, 0)
    lines = render(report_of(seconds)).splitlines()

    assert max(map(len, lines)) <= 18 + COLUMNS
    assert lines[-2].split()[1].count("1") == 1
    assert lines[-1].split()[-1].count("4") == 1
    assert sum("█" in line for line in lines) == 10
