"""Times of loads and of their stages, on a clock that the test moves."""

import math
from pathlib import Path

import pytest

from plimsoll.sidecar.load_times import LoadTimes, LoadTotals
from plimsoll.sidecar.loader import StreamingGGUFLoader
from tests.fakes import FakeClock
from tests.small_models import TINY
from tests.synthetic import tensor_shapes, write_synthetic


def test_loads_side_by_side_are_one_time():
    """Two models that load at once do not make two seconds of one."""
    clock = FakeClock()
    times = LoadTimes(clock=clock)

    with times.loading():
        clock.now_s += 1
        with times.loading():
            clock.now_s += 2
            assert times.totals.n_under_way == 2
        clock.now_s += 1
        assert times.totals.loading_s == pytest.approx(4)
    clock.now_s += 9
    assert (times.totals.n_under_way, times.totals.loading_s) == (0, pytest.approx(4))


def test_a_load_that_fails_has_ended():
    """Else a broken file would be a conversion for ever."""
    times = LoadTimes()

    with pytest.raises(OSError, match="gone"), times.loading(), times.stage("read"):
        raise OSError("gone")

    assert times.totals.n_under_way == 0


def test_a_real_load_tells_the_time_of_every_tensor_and_of_every_stage(tmp_path: Path):
    """What names the bottleneck has to come from the pipeline itself."""
    source = write_synthetic(tmp_path / "m.gguf", quant="Q8_0", arch="bert", shape=TINY)
    tensors: list[float] = []
    times = LoadTimes(tensors.append)

    StreamingGGUFLoader(tmp_path / "cache", allow_memory_backed=True, times=times).load(
        source
    ).close()

    assert len(tensors) == len(tensor_shapes("bert", TINY))
    assert min(tensors) >= 0
    assert all(seconds > 0 for seconds in times.totals.stage_s.values())
    n_values = sum(math.prod(shape) for shape in tensor_shapes("bert", TINY).values())
    assert times.totals.n_bytes == 4 * n_values


def test_the_totals_are_a_picture_of_one_moment():
    """Their readers keep them and compare them with later ones."""
    times = LoadTimes()
    before = times.totals

    with times.stage("expand"):
        pass

    assert before == LoadTotals(0, 0.0, dict.fromkeys(before.stage_s, 0.0))
