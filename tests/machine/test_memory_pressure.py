"""Signs of want of memory: pressure, refaults and kills, against fake folders."""

from pathlib import Path

import pytest

from plimsoll.machine.memory import MIB, MemoryRates, MemorySample, rates_between
from tests.fake_machine import STAT_V1, STAT_V2, V1_MOUNT, V2_MOUNT, Machine, v1_machine, v2_machine


@pytest.fixture
def v1(tmp_path: Path) -> Machine:
    return v1_machine(tmp_path)


@pytest.fixture
def v2(tmp_path: Path) -> Machine:
    return v2_machine(tmp_path)


def psi(percent: float) -> str:
    """A pressure file as the kernel writes it, with every other number somewhere else."""
    return (
        f"some avg10={percent:.2f} avg60=71.00 avg300=72.00 total=73\n"
        "full avg10=74.00 avg60=75.00 avg300=76.00 total=77\n"
    )


def test_pressure_is_that_of_the_group_whose_limit_counts(v2):
    """The one that is about to run out of memory is the one to ask how it is."""
    v2.write_group("a", max=300 * MIB, pressure=psi(12.5))
    v2.write_group("a/b", pressure=psi(50))
    v2.write_proc("pressure/memory", psi(90))
    assert v2.monitor().sample().pressure_ratio == 0.125


def test_pressure_without_a_limit_is_that_of_the_own_group(v2):
    """Other people's want of memory is not ours."""
    v2.write_group("a", pressure=psi(50))
    v2.write_group("a/b", pressure=psi(0.07))
    v2.write_proc("pressure/memory", psi(90))
    assert v2.monitor().sample().pressure_ratio == pytest.approx(0.0007)


def test_pressure_on_a_v1_host_is_read_in_the_v2_tree_beside_it(v1):
    """v1 groups have no such file; systemd puts the process into a v2 group too."""
    v1.stand_in(
        "4:memory:/a/b\n0::/x/y\n",
        V1_MOUNT.format(root="/") + V2_MOUNT.format(root="/", below="/unified"),
    )
    v1.write_group("memory/a/b", limit_in_bytes=400 * MIB)
    v1.write_group("unified/x/y", pressure=psi(25))
    v1.write_proc("pressure/memory", psi(90))
    assert v1.monitor().sample().pressure_ratio == 0.25


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_pressure_of_the_machine_is_used_where_no_group_tells(version, request):
    """Better than blindness; and what presses on the machine presses on us."""
    machine = request.getfixturevalue(version)
    machine.write_proc("pressure/memory", psi(90))
    assert machine.monitor().sample().pressure_ratio == 0.9


@pytest.mark.parametrize(
    "text", ["", "some\n", "some avg10=high avg60=1.00\n", "full avg10=1.00 avg60=1.00\n"]
)
def test_pressure_that_is_not_measured_is_unknown_not_zero(v2, text):
    """A kernel started with psi=0 must not look like one at ease."""
    v2.write_group("a/b", pressure=text)
    assert v2.monitor().sample().pressure_ratio is None


def test_v2_counts_refaults_and_kills_of_the_own_group(v2):
    """A neighbour in the same pod that re-reads or dies says nothing of this process."""
    stat = f"{STAT_V2}workingset_refault_anon 5\nworkingset_refault_file 1234\n"
    v2.write_group("a", max=400 * MIB, stat=f"{STAT_V2}workingset_refault_file 99999\n")
    v2.write_group("a", events="oom_kill 9\n")
    v2.write_group("a/b", stat=stat, events="low 0\nhigh 1\nmax 20\noom 3\noom_kill 2\n")
    sample = v2.monitor().sample()
    assert (sample.n_refaults, sample.oom_kills) == (1234, 2)


def test_v1_counts_refaults_and_kills_of_the_own_group(v1):
    """v1 counts a kill only in the group where its victim stood."""
    stat = f"{STAT_V1}workingset_refault_file 7\ntotal_workingset_refault_file 1234\n"
    v1.write_group("memory/a", limit_in_bytes=400 * MIB)
    v1.write_group(
        "memory/a/b", stat=stat, oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"
    )
    sample = v1.monitor().sample()
    assert (sample.n_refaults, sample.oom_kills) == (1234, 2)


def test_kernels_without_these_counters_count_none(v1):
    """Older ones, on v1 above all."""
    v1.write_group("memory/a/b", limit_in_bytes=400 * MIB)
    sample = v1.monitor().sample()
    assert (sample.n_refaults, sample.oom_kills) == (0, 0)


def test_a_group_without_the_memory_controller_is_counted_by_the_next_above(v2):
    """v2 groups get memory files only where the group above hands the controller down."""
    v2.stand_in("0::/a/b/c\n", V2_MOUNT.format(root="/", below=""))
    v2.write_file("a/b/c/cgroup.procs", "")
    v2.write_group("a/b", stat=f"{STAT_V2}workingset_refault_file 8\n", events="oom_kill 1\n")
    sample = v2.monitor().sample()
    assert (sample.n_refaults, sample.oom_kills) == (8, 1)


def sample_with(n_refaults: int, oom_kills: int) -> MemorySample:
    return MemorySample(1, 1, 1, 2, "group", n_refaults=n_refaults, oom_kills=oom_kills)


@pytest.mark.parametrize(
    ("earlier", "later", "elapsed_s", "rates"),
    [
        ((100, 1), (400, 3), 2.0, MemoryRates(150.0, 2)),
        ((100, 1), (100, 1), 1.0, MemoryRates(0.0, 0)),
        ((400, 3), (100, 1), 1.0, MemoryRates(0.0, 0)),
        ((100, 1), (400, 2), 0.0, MemoryRates(0.0, 1)),
    ],
    ids=["grown", "the same", "begun anew", "no time"],
)
def test_rates_are_what_happened_between_two_samples(earlier, later, elapsed_s, rates):
    """Counts since the group was made say nothing of now; a count never runs backwards."""
    assert rates_between(sample_with(*earlier), sample_with(*later), elapsed_s) == rates
