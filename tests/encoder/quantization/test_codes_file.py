"""The file of codes: what is written is read again, and damage is found."""

import errno
import json
import os
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
    verify_codes,
)
from plimsoll.encoder.quantization.gate import Choice, Verdict
from plimsoll.encoder.quantization.gptq import Codes
from plimsoll.encoder.roads import road_plan
from plimsoll.errors import CacheCorruptError, CacheError
from plimsoll.sidecar import checked_file

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
            writer.add(codes_of(layer))
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

    assert found in {place.codes_offset for place in codes.index.linears if place.layer == 1}
    assert codes.offset_of(np.zeros(4)) is None


def damage(folder: Path, layer: int, at: int) -> None:
    with closing(CodesFile(folder)) as codes:
        place = codes.index.places[layer]
    with (folder / CODES_NAME).open("r+b") as file:
        position = file.seek(place.offset + at % place.n_bytes)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("at", [0, -1])
def test_a_damaged_layer_is_found_before_its_use_and_the_codes_are_put_aside(folder: Path, at: int):
    """Vectors of damaged codes look like any others."""
    damage(folder, 1, at)

    with closing(CodesFile(folder)) as codes:
        codes.verify(0)
        with pytest.raises(CacheCorruptError, match="is damaged in layer 1"):
            codes.verify(1)

    assert not has_codes(folder)


@pytest.mark.parametrize("fault", ["older format", "damaged index", "size"])
def test_what_is_no_file_of_codes_is_put_aside(folder: Path, fault: str):
    """They are made again, instead of being met by every later opening."""
    if fault == "size":
        os.truncate(folder / CODES_NAME, 100)
    elif fault == "older format":
        (folder / INDEX_NAME).write_text(json.dumps({"format_version": 1}))
    else:
        (folder / INDEX_NAME).write_text("{}")

    with pytest.raises(CacheCorruptError):
        CodesFile(folder)

    assert not has_codes(folder)


@pytest.mark.parametrize("error", [OSError(errno.ENOMEM, "no memory"), MemoryError()])
def test_good_codes_stay_where_they_cannot_be_opened_now(
    folder: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
):
    """They took minutes, and name a space that others may be in: only damage takes them away."""

    def refuse(*given: object, **options: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(checked_file.mmap, "mmap", refuse)
        with pytest.raises((CacheError, MemoryError)) as caught:
            CodesFile(folder)

    assert not isinstance(caught.value, CacheCorruptError)
    CodesFile(folder).close()


def test_good_codes_stay_where_the_disk_does_not_read_them_now(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """A sidecar is made again in seconds; codes are not."""

    def stumble(*given: object) -> None:
        raise OSError(errno.EIO, "stumbled")

    with closing(CodesFile(folder)) as codes:
        with monkeypatch.context() as patched:
            patched.setattr(os, "preadv", stumble)
            with pytest.raises(CacheError, match="cannot be read now") as caught:
                codes.verify(0)
        assert not isinstance(caught.value, CacheCorruptError)
        codes.verify(0)

    assert has_codes(folder)


def test_verifying_names_what_is_damaged_and_puts_it_aside(folder: Path):
    """`plimsoll cache verify` reads codes too."""
    assert verify_codes(folder) == []
    damage(folder, 1, 5)

    (found,) = verify_codes(folder)

    assert found.place == f"{CODES_NAME} layer 1"
    assert not has_codes(folder)
    assert verify_codes(folder) == []


def test_short_texts_have_a_road_of_their_own(codes: CodesFile):
    """Where the gate has kept them in float32; otherwise there is one for all."""
    assert road_plan(codes) == [(8, codes), (0, None)]
    assert road_plan(None) == [(0, None)]
