"""The name of what limits throughput, from made-up evidence."""

from dataclasses import replace

import pytest

from plimsoll.encoder.weight_sizes import WeightSizes
from plimsoll.tuning.bottleneck import MIB, Kind, advice, name_bottleneck
from plimsoll.tuning.evidence import Evidence

IDLE = Evidence(seconds=8.0, budget_bytes=400 * MIB, cores=2)
# A server that works all the time, and wants for nothing.
BUSY = replace(IDLE, busy_ratio=1.0, own_ratio=0.95, tokens_per_s=500, drain_tokens_per_s=500)

MEMORY = replace(BUSY, utilization_ratio=0.73)
HELD_BACK = replace(IDLE, held_back_ratio=0.2)
STALLED = replace(BUSY, pressure_ratio=0.2)
DISK = replace(BUSY, read_bytes_per_s=300 * MIB, system_ratio=0.4)
SLOW_DISK = replace(BUSY, read_bytes_per_s=50 * MIB, io_pressure_ratio=0.6)
THRASHING = replace(BUSY, read_bytes_per_s=300 * MIB, pressure_ratio=0.5)
CPU = replace(BUSY, others_ratio=0.5, own_ratio=0.5)
THROTTLED = replace(BUSY, throttled_ratio=0.4, own_ratio=0.5)
EXPANDING = replace(IDLE, is_loading=True, loading_ratio=0.3, expand_ratio=0.7)
STORING = replace(IDLE, is_loading=True, loading_ratio=0.3, expand_ratio=0.2)
FLOODED = replace(BUSY, queue_tokens=2000)


def name(evidence: Evidence, named: Kind = Kind.NONE) -> Kind:
    return name_bottleneck(evidence, named).kind


@pytest.mark.parametrize(
    ("evidence", "kind"),
    [
        (IDLE, Kind.NONE),
        (BUSY, Kind.NONE),
        (MEMORY, Kind.MEMORY),
        (HELD_BACK, Kind.MEMORY),
        (STALLED, Kind.MEMORY),
        (DISK, Kind.DISK),
        (SLOW_DISK, Kind.DISK),
        (THRASHING, Kind.DISK),
        (CPU, Kind.CPU),
        (THROTTLED, Kind.CPU),
        (EXPANDING, Kind.DEQUANTIZATION),
        (STORING, Kind.DISK),
        (FLOODED, Kind.QUEUE),
    ],
)
def test_each_cause_has_its_name(evidence: Evidence, kind: Kind):
    """A person acts on the name: more memory does not help a slow disk."""
    found = name_bottleneck(evidence)
    assert found.kind is kind
    assert found.reasons
    assert (found.score >= 1) == (kind is not Kind.NONE)


@pytest.mark.parametrize("evidence", [MEMORY, DISK, CPU, THROTTLED, FLOODED])
def test_a_server_without_requests_has_no_bottleneck(evidence: Evidence):
    """A busy neighbour of an idle server costs no request anything."""
    found = name_bottleneck(replace(evidence, busy_ratio=0.1))
    assert found.kind is Kind.NONE
    assert "10 %" in found.reasons[0]


@pytest.mark.parametrize(
    ("evidence", "kind"),
    [
        (replace(MEMORY, others_ratio=0.5, own_ratio=0.5, queue_tokens=2000), Kind.MEMORY),
        (replace(DISK, others_ratio=0.5, own_ratio=0.5, queue_tokens=2000), Kind.DISK),
        (replace(CPU, queue_tokens=2000), Kind.CPU),
        (replace(EXPANDING, others_ratio=0.9, busy_ratio=1.0), Kind.DEQUANTIZATION),
    ],
)
def test_a_cause_comes_before_what_it_brings_about(evidence: Evidence, kind: Kind):
    """A queue behind a slow disk is not mended by another core."""
    assert name(evidence) is kind


def test_reading_that_costs_nothing_is_no_bottleneck():
    """Weights that are read ahead while the engine computes keep no run waiting."""
    assert name(replace(DISK, system_ratio=0.1)) is Kind.NONE


def test_work_in_the_kernel_without_reading_is_not_the_disks():
    """Allocating costs time there too."""
    assert name(replace(DISK, read_bytes_per_s=0)) is Kind.NONE


def test_others_who_use_what_we_leave_idle_are_no_bottleneck():
    """On many processors there is room for a neighbour."""
    assert name(replace(CPU, others_ratio=0.4, own_ratio=0.3)) is Kind.NONE


def test_a_short_queue_is_none():
    """Clients that wait for their own answers keep the engine busy and no other client waiting."""
    assert name(replace(FLOODED, queue_tokens=500)) is Kind.NONE


def test_a_conversion_that_has_just_ended_is_still_the_reason():
    """The requests of the last seconds waited for it."""
    ended = replace(EXPANDING, is_loading=False)
    assert name(ended) is Kind.DEQUANTIZATION
    assert name(replace(ended, loading_ratio=0.01)) is Kind.NONE


@pytest.mark.parametrize(
    ("kind", "between", "below"),
    [
        (Kind.MEMORY, replace(BUSY, utilization_ratio=0.60), replace(BUSY, utilization_ratio=0.5)),
        (Kind.CPU, replace(CPU, others_ratio=0.25, own_ratio=0.7), replace(CPU, others_ratio=0.2)),
        (Kind.DISK, replace(DISK, system_ratio=0.2), replace(DISK, system_ratio=0.15)),
        (Kind.QUEUE, replace(BUSY, queue_tokens=800), replace(BUSY, queue_tokens=700)),
    ],
)
def test_a_name_stays_until_its_cause_is_well_below_the_line(
    kind: Kind, between: Evidence, below: Evidence
):
    """A value that swings around its line must not make the name flap."""
    assert name(between) is Kind.NONE
    assert name(between, named=kind) is kind
    assert name(below, named=kind) is Kind.NONE


def test_reasons_hold_the_figures():
    """A name without figures is an opinion."""
    (reason,) = name_bottleneck(DISK).reasons
    assert "300 MiB a second" in reason
    assert "40 %" in reason


def test_advice_for_the_disk_says_how_much_memory_is_missing_and_what_float16_would_save():
    """Both are sums that a person would have to work out."""
    weights = WeightSizes(520 * MIB, 36 * MIB, 12)
    said = " ".join(advice(Kind.DISK, replace(DISK, used_bytes=80 * MIB, weights=weights)))
    assert "by 200 MiB" in said
    assert "260 MiB, not 520" in said


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.NONE])
def test_there_is_something_to_do_about_every_kind(kind: Kind):
    """And nothing about none."""
    assert advice(kind, BUSY)
    assert not advice(Kind.NONE, BUSY)
