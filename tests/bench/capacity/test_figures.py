"""Figures of one server: what they say by themselves, and the file that keeps them."""

from dataclasses import replace
from math import isclose
from pathlib import Path

import orjson
import pytest

from plimsoll.bench.capacity.figures import FiguresError, read_figures
from tests.bench.capacity.figures import FIGURES


def test_both_rates_make_what_a_request_and_a_token_cost():
    assert isclose(FIGURES.request_s, 0.002)
    assert isclose(FIGURES.token_s, 0.0001)
    assert isclose(FIGURES.cost_s(30), 0.005)
    assert isclose(FIGURES.alone_s(30), 0.008 + 20 * 0.0001)


def test_a_server_whose_lists_are_no_dearer_has_no_cost_of_a_request():
    even = replace(FIGURES, short_per_s=1000.0, list_tokens_per_s=10_000.0)
    assert even.request_s == 0.0
    assert isclose(even.token_s, 0.0001)


def test_figures_are_read_as_they_were_written(tmp_path: Path):
    file = tmp_path / "figures.json"
    file.write_bytes(orjson.dumps(FIGURES.as_dict()))
    assert read_figures(file) == FIGURES


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": 2}, "capacity measure"),
        ({"cores": 0}, "cores is 0"),
        ({"cores": "two"}, "cores is 'two'"),
        ({"model": 5}, "model is 5"),
        ({"lone_s": True}, "lone_s is True"),
        ({"more": 1}, "its keys have to be"),
        ({"list_tokens": 5}, "no more tokens"),
    ],
)
def test_a_file_that_is_none_is_refused_with_the_reason(
    change: dict[str, object], told: str, tmp_path: Path
):
    file = tmp_path / "figures.json"
    file.write_bytes(orjson.dumps(FIGURES.as_dict() | change))
    with pytest.raises(FiguresError, match=told):
        read_figures(file)


def test_what_is_no_json_is_refused(tmp_path: Path):
    file = tmp_path / "figures.json"
    file.write_text("12 servers")
    with pytest.raises(FiguresError, match="no figures"):
        read_figures(file)
