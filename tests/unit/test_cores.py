"""How many cores may be used, from made-up control groups."""

import os
from pathlib import Path

import pytest

from app.memory.cores import available_cores, quota_cores


def v2(root: Path, text: str) -> Path:
    (root / "cpu.max").write_text(text)
    return root


def v1(root: Path, quota: str, period: str = "100000\n") -> Path:
    (root / "cpu").mkdir()
    (root / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (root / "cpu" / "cpu.cfs_period_us").write_text(period)
    return root


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("200000 100000\n", 2.0),
        ("150000 100000\n", 1.5),
        ("25000 50000\n", 0.5),
        ("max 100000\n", None),
        ("", None),
        ("0 100000\n", None),
        ("100000 0\n", None),
        ("nonsense here\n", None),
    ],
)
def test_version_2_gives_quota_over_period(tmp_path: Path, text: str, cores: float | None):
    """`docker run --cpus 1.5` writes 150000 100000."""
    assert quota_cores(v2(tmp_path, text)) == cores


@pytest.mark.parametrize(
    ("quota", "cores"), [("200000\n", 2.0), ("50000\n", 0.5), ("-1\n", None), ("x\n", None)]
)
def test_version_1_gives_quota_over_period(tmp_path: Path, quota: str, cores: float | None):
    """There -1 is no limit."""
    assert quota_cores(v1(tmp_path, quota)) == cores


def test_without_control_groups_there_is_no_quota(tmp_path: Path):
    """macOS has none."""
    assert quota_cores(tmp_path) is None


def test_version_1_without_its_period_is_no_quota(tmp_path: Path):
    """Half a limit is none."""
    root = v1(tmp_path, "100000\n")
    (root / "cpu" / "cpu.cfs_period_us").unlink()

    assert quota_cores(root) is None


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of eight cores of which the process may use four."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 5}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("max 100000", 4),
        ("800000 100000", 4),
        ("300000 100000", 3),
        ("250000 100000", 3),  # rounded up: a thread for the half core too
        ("10000 100000", 1),
    ],
)
def test_the_smaller_of_affinity_and_quota_counts(tmp_path: Path, text: str, cores: int):
    """More threads than the quota allows are stopped together in the middle of a layer."""
    assert available_cores(v2(tmp_path, text)) == cores


def test_a_system_without_affinity_counts_its_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """macOS again."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert available_cores(tmp_path) == 8

    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores(tmp_path) == 1
