"""The benchmark's own parts: a wrong yardstick would make every figure wrong."""

import subprocess
import sys
from contextlib import closing
from importlib import metadata
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from plimsoll.bench.comparison.command import machine_facts, main
from plimsoll.bench.comparison.engine import EnginePeer, make_opener, unreported
from plimsoll.bench.comparison.limits import LimitedGroup
from plimsoll.bench.comparison.naive import NaivePeer
from plimsoll.bench.comparison.naive_export import write_naive
from plimsoll.bench.comparison.report import Figure, Floor, Report
from plimsoll.bench.comparison.texts import in_runs, mixed_lengths, token_ids
from tests.synthetic import TINY_SHAPE, write_synthetic

ROOT = Path(__file__).parents[2]
LENGTHS = [2, 40, 7, 128, 65]


@pytest.mark.parametrize("arch", ["nomic-bert", "bert"])
def test_the_naive_path_computes_what_the_engine_computes(tmp_path, arch):
    """A peer that computes something else would be no peer."""
    model = write_synthetic(tmp_path / "tiny.gguf", arch=arch, shape=TINY_SHAPE)
    cache = tmp_path / "cache"
    sidecar = make_opener(str(model), cache, n_threads=1).prepare(unreported)
    write_naive(sidecar.folder, tmp_path / "naive.onnx")
    sidecar.close()
    engine = EnginePeer(
        str(model), cache, n_threads=1, run_texts=3, run_tokens=1000, drop_pages=False
    )
    texts = token_ids(LENGTHS, TINY_SHAPE.vocab)

    with closing(engine):
        ours = engine.encode(texts)
    theirs = NaivePeer(tmp_path / "naive.onnx", "MEAN").encode(texts)

    assert (ours * theirs).sum(axis=1).min() > 0.999999


def test_every_process_measures_the_same_texts():
    """Peers are separate processes, and their vectors are compared."""
    first, second = (token_ids(LENGTHS, 30_528) for _ in range(2))
    assert [len(ids) for ids in first] == LENGTHS
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert max(ids.max() for ids in token_ids(LENGTHS, 150)) < 150


def test_without_the_load_file_lengths_have_its_distribution():
    """A user's own machine has no load file, and its figures should still compare."""
    lengths = mixed_lengths(400, 512, None)
    quartiles = np.percentile(lengths, [25, 50, 75])
    assert quartiles == pytest.approx([18, 30, 155], rel=0.35)
    assert max(mixed_lengths(400, 256, None)) == 256


def test_runs_keep_the_order_and_both_limits():
    """The executor's rule: so many texts or tokens, but always at least one text."""
    texts = token_ids([10, 10, 10, 90, 200, 5], 2048)
    runs = [[len(ids) for ids in run] for run in in_runs(texts, 2, 100)]
    assert runs == [[10, 10], [10, 90], [200], [5]]


def test_better_is_above_one_whichever_direction_is_better():
    """One column is read for speeds and seconds alike."""
    speed = Figure("m", "speed", "list", "tokens/s", [400, 500], "naive", [100, 100])
    start = Figure("m", "start", "vector", "s", [0.5], "naive", [2.0], lower_is_better=True)
    assert speed.ratios == [4, 5]
    assert start.ratios == [4]


@pytest.mark.parametrize(
    ("floor", "verdict"),
    [
        (Floor("ratio", at_least=4.5), "pass"),
        (Floor("ratio", at_least=4.6), "MISS"),
        (Floor("value", at_most=450), "pass"),
        (Floor("value", at_most=449), "MISS"),
        (None, None),
    ],
)
def test_a_floor_is_held_by_the_median(floor, verdict):
    """One slow round on a shared machine is not a miss."""
    figure = Figure("m", "s", "n", "u", [400, 500], "p", [100, 100], floor=floor)
    report = Report({}, {}, [figure])
    assert figure.verdict == verdict
    assert report.n_missed == (verdict == "MISS")
    assert report.as_dict()["figures"][0]["verdict"] == verdict
    *_, last, _ = report.as_table().splitlines()[-2].split("|")
    assert last.strip() == (verdict or "")


def test_numbers_have_three_digits_that_matter():
    """A floor of 1.66667 promises more than it knows."""
    assert str(Floor("ratio", at_least=1 / 0.6)) == "≥ 1.67 ×"
    figure = Figure("m", "s", "n", "tokens/s", [70_181.4], "p", [1.2345])
    assert figure.cells == ("70,181 tokens/s", "1.23 tokens/s", "p", "56,850 ×")


def test_a_floor_without_a_figure_is_not_measured_and_not_held():
    """A miss says that Plimsoll is slower; and what was not measured must not pass a check."""
    figure = Figure("m", "s", "n", "s", [0.0], "p", [1.0], True, Floor("ratio", at_least=2))
    assert (figure.ratio, figure.verdict) == (None, "not measured")
    report = Report({}, {}, [figure])
    assert report.n_missed == 1
    assert "not measured" in report.as_table()


@pytest.mark.parametrize(
    ("version", "files"),
    [
        (
            1,
            {
                "limit": "memory.limit_in_bytes",
                "swap": ("memory.memsw.limit_in_bytes", "1000"),
                "usage": "memory.usage_in_bytes",
                "stat": "total_rss 40",
                "events": "memory.oom_control",
            },
        ),
        (
            2,
            {
                "limit": "memory.max",
                "swap": ("memory.swap.max", "0"),
                "usage": "memory.current",
                "stat": "anon 40",
                "events": "memory.events",
            },
        ),
    ],
)
def test_a_limited_group_is_set_and_read_in_both_versions(tmp_path, version, files):
    """Most hosts have version 2; a limit that silently is not there would fake a pass."""
    swap_file, swap_bytes = files["swap"]
    (tmp_path / swap_file).write_text("")
    (tmp_path / files["usage"]).write_text("70\n")
    (tmp_path / "memory.stat").write_text(files["stat"] + "\n")
    (tmp_path / files["events"]).write_text("oom_kill 1\n")

    group = LimitedGroup(version, tmp_path, 1000)
    group.stop()

    assert (tmp_path / files["limit"]).read_text() == "1000"
    assert (tmp_path / swap_file).read_text() == swap_bytes
    assert (group.usage_peak_bytes, group.anonymous_peak_bytes, group.oom_kills) == (70, 40, 1)


def test_either_package_of_onnx_runtime_does(monkeypatch):
    """Where onnxruntime-gpu alone is installed, nothing is called onnxruntime."""

    def without(name: str) -> metadata.Distribution:
        if name == "onnxruntime":
            raise metadata.PackageNotFoundError(name)
        return found(name)

    found = metadata.distribution
    monkeypatch.setattr(metadata, "distribution", without)
    with pytest.raises(metadata.PackageNotFoundError):
        metadata.version("onnxruntime")

    assert machine_facts()["ONNX Runtime"] == onnxruntime.__version__


def test_an_installed_package_says_what_only_a_checkout_can_measure():
    """A wheel has no tests, and so cannot make the synthetic model."""
    with pytest.raises(SystemExit, match=r"run scripts/benchmark\.py of a checkout"):
        main(["--model", "synthetic", "--only", "start"])


def test_the_script_of_a_checkout_starts_from_any_folder(tmp_path):
    """It is the command that the documentation names."""
    command = [sys.executable, ROOT / "scripts" / "benchmark.py", "--help"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "python -m plimsoll.bench." in found.stdout
