"""The file of codes: what is written is read again, and damage is found."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from plimsoll.encoder.quantization.codes_file import (
    CODES_NAME,
    INDEX_NAME,
    CodesFile,
    CodesWriter,
    has_codes,
)
from plimsoll.encoder.quantization.gate import Choice, Verdict
from plimsoll.encoder.quantization.gptq import Codes
from plimsoll.encoder.roads import road_plan
from plimsoll.errors import CacheCorruptError

CHOICE = Choice(("ffn_up", "ffn_down"), 8, Verdict(100, 0.9999, 0.9994))


def codes_of(layer: int) -> dict[str, Codes]:
    random = np.random.default_rng(layer)
    return {
        name: Codes(
            random.integers(-127, 128, shape).astype(np.int8),
            random.random(shape[0]).astype(np.float32),
        )
        for name, shape in (("ffn_up", (24, 16)), ("ffn_down", (16, 24)))
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with closing(CodesWriter(tmp_path / CODES_NAME)) as writer:
        for layer in range(2):
            writer.add(layer, codes_of(layer))
        writer.finish(tmp_path / INDEX_NAME, CHOICE, "of some tensors")
    return tmp_path


@pytest.fixture
def codes(folder: Path) -> Iterator[CodesFile]:
    with closing(CodesFile(folder)) as codes:
        yield codes


def test_codes_come_back_turned_for_the_products(codes: CodesFile):
    """Written (n_out, n_in), read as the operator takes them."""
    for layer in range(2):
        arrays = codes.arrays(layer)
        for name, written in codes_of(layer).items():
            np.testing.assert_array_equal(arrays[f"{name}.codes"], written.codes.T)
            np.testing.assert_array_equal(arrays[f"{name}.scales"], written.scales)
    del arrays
    assert codes.index.choice == CHOICE
    assert codes.index.content_sha256 == "of some tensors"


def test_a_view_knows_where_it_lies_and_others_lie_nowhere(codes: CodesFile):
    """ONNX Runtime is told the place, and maps the file itself."""
    found = codes.offset_of(codes.arrays(1)["ffn_down.codes"])

    assert found in {place.codes_offset for place in codes.index.places if place.layer == 1}
    assert codes.offset_of(np.zeros(4)) is None


@pytest.mark.parametrize("where", [0, -1])
def test_damage_is_found_at_opening_and_the_codes_are_put_aside(folder: Path, where: int):
    """Vectors of damaged codes look like any others."""
    data = bytearray((folder / CODES_NAME).read_bytes())
    data[where] ^= 1
    (folder / CODES_NAME).write_bytes(data)

    with pytest.raises(CacheCorruptError, match="its hash"):
        CodesFile(folder)

    assert not has_codes(folder)


def test_short_texts_have_a_road_of_their_own(codes: CodesFile):
    """Where the gate has kept them in float32; otherwise there is one for all."""
    assert road_plan(codes) == [(8, codes), (0, None)]
    assert road_plan(None) == [(0, None)]
