"""Opening over packed weights, and what happens where they cannot be had or are damaged."""

import logging
import os
import shutil
import threading
import weakref
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plimsoll import files
from plimsoll.composition.models import open_model, prepare_model
from plimsoll.encoder.backends import onnx_runtime, packed_weights, packing
from plimsoll.encoder.backends.onnx_backend import OnnxBackend
from plimsoll.encoder.backends.packed_weights import PackedWeights
from plimsoll.encoder.quantization.codes_file import CODES_NAME
from plimsoll.errors import (
    CacheCorruptError,
    CacheError,
    CacheSpaceError,
    EncodeMemoryError,
    PackingError,
)
from plimsoll.machine import mappings
from plimsoll.machine.instructions import has_int8_products
from plimsoll.models import quantizing
from plimsoll.settings import Settings
from plimsoll.sidecar import packed
from plimsoll.sidecar.cache import list_sidecars, verify
from plimsoll.sidecar.checked_file import CheckedFile
from plimsoll.sidecar.loader import unreported
from plimsoll.sidecar.packed import PACKED_NAME, PackedFile, packed_folders
from plimsoll.sidecar.sidecar import INDEX_NAME, WEIGHTS_NAME, Sidecar
from tests.small_models import NARROW, draw_few_samples, opened, small_settings
from tests.synthetic import write_synthetic

TEXTS = [np.arange(104, 104 + n) for n in (9, 40)]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return small_settings(
        tmp_path, write_synthetic(tmp_path / "model.gguf", shape=NARROW), threads=2
    )


def packed_of(settings: Settings) -> list[Path]:
    (sidecar,) = (settings.cache_dir / files.SIDECARS_FOLDER).iterdir()
    return packed_folders(sidecar)


def damage(folder: Path, graph: str) -> None:
    with closing(PackedFile(folder)) as packed:
        offset = packed.blobs(graph)[0].offset
    with (folder / PACKED_NAME).open("r+b") as file:
        file.seek(offset + 900)
        file.write(b"damage")


def spoiled(settings: Settings, damage: str) -> Path:
    """The folder of packed weights that do not open."""
    prepare_model(settings, unreported)
    (folder,) = packed_of(settings)
    if damage == "index":
        (folder / INDEX_NAME).write_bytes(b"{}")
    elif damage == "size":
        os.truncate(folder / PACKED_NAME, 4096)
    else:
        (folder / PACKED_NAME).unlink()
    return folder


def test_pulling_packs_so_that_the_first_start_is_warm(settings: Settings):
    """An image is built with the model in it."""
    prepare_model(settings, unreported)
    (folder,) = packed_of(settings)
    made = (folder / PACKED_NAME).stat().st_mtime_ns

    with opened(settings) as model:
        model.encode(TEXTS)

    assert (folder / PACKED_NAME).stat().st_mtime_ns == made


@pytest.mark.parametrize(
    ("where", "error", "words"),
    [
        ("packing", CacheSpaceError("500 MiB are needed"), "500 MiB are needed"),
        ("opening", PackingError("on the heap"), "on the heap"),
    ],
)
def test_a_model_opens_without_packed_weights_where_they_cannot_be_had(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    where: str,
    error: Exception,
    words: str,
):
    """A full disk, a folder that is only read, a processor or a library that does not find them."""
    with opened(settings) as model:
        expected = model.encode(TEXTS)

    def fail(*given: object) -> None:
        raise error

    if where == "packing":
        monkeypatch.setattr(packing, "made_by", lambda: "another machine")
        monkeypatch.setattr(files, "check_space", fail)
    else:
        monkeypatch.setattr(PackedWeights, "open_layers", fail)
    with caplog.at_level(logging.WARNING), opened(settings) as model:
        vectors = model.encode(TEXTS)

    said = [r.getMessage() for r in caplog.records if "packed at every call" in r.getMessage()]
    assert len(said) == 1
    assert words in said[0]
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1]], ids=["by layers", "at once"])
def test_a_damaged_blob_ends_the_run_and_is_made_again_by_the_next_opening(
    settings: Settings, texts: list[np.ndarray]
):
    """Vectors of damaged weights look like any others."""
    prepare_model(settings, unreported)
    damage(packed_of(settings)[0], "1.transform")

    with opened(settings) as model, pytest.raises(CacheCorruptError, match="damaged in 1"):
        model.encode(texts)

    assert packed_of(settings) == []
    with opened(settings) as model:
        assert np.isfinite(model.encode(TEXTS)).all()
    assert len(packed_of(settings)) == 1


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1]], ids=["by layers", "at once"])
@pytest.mark.parametrize("change", ["cut", "written to"])
@pytest.mark.parametrize("which", ["weights", "packed"])
def test_a_file_that_changes_under_an_open_model_ends_the_run_and_not_the_process(
    settings: Settings, texts: list[np.ndarray], change: str, which: str
):
    """A read behind its end is SIGBUS, and what is written shows in vectors."""
    prepare_model(settings, unreported)
    (folder,) = packed_of(settings)
    path = folder / PACKED_NAME if which == "packed" else folder.parent / WEIGHTS_NAME
    with opened(settings) as model:
        expected = model.encode(texts)
        if change == "cut":
            os.truncate(path, 4096)
        else:
            with path.open("r+b") as file:
                file.write(file.read(1))
        with pytest.raises(CacheCorruptError, match="while it was served"):
            model.encode(texts)
        with pytest.raises(CacheCorruptError, match="while it was served"):
            model.check_unchanged()

    with opened(settings) as model:
        np.testing.assert_array_equal(model.encode(texts), expected)


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1]], ids=["by layers", "at once"])
@pytest.mark.parametrize("which", ["everything", PACKED_NAME, WEIGHTS_NAME, CODES_NAME])
def test_sessions_that_open_late_open_what_was_mapped_or_nothing(
    settings: Settings, texts: list[np.ndarray], which: str, monkeypatch: pytest.MonkeyPatch
):
    """Another process may remove files and make them anew; others' weights give other vectors."""
    if which == CODES_NAME:
        if not has_int8_products():
            pytest.skip("this processor has no int8 products")
        monkeypatch.setattr(quantizing, "draw_samples", draw_few_samples)
        settings = settings.model_copy(update={"compute": "int8", "min_cosine": 0})
    prepare_model(settings, unreported)
    (sidecar,) = (settings.cache_dir / files.SIDECARS_FOLDER).iterdir()
    with opened(settings) as model:
        expected = model.encode(texts)

    with opened(settings) as model:
        if which == "everything":
            shutil.rmtree(sidecar)
        else:
            (path,) = sidecar.rglob(which)
            other = path.with_name("other")
            other.write_bytes(path.read_bytes()[::-1])
            other.rename(path)
        with pytest.raises(CacheCorruptError, match="removed or replaced while it was served"):
            model.encode(texts)

    with opened(settings) as model:
        np.testing.assert_array_equal(model.encode(texts), expected)


def test_a_file_that_is_cut_between_two_layers_is_noticed_before_the_next(settings: Settings):
    """A run of long texts takes seconds."""
    prepare_model(settings, unreported)
    (folder,) = packed_of(settings)

    def cut() -> None:
        os.truncate(folder / PACKED_NAME, 4096)

    with opened(settings) as model:
        model.encode(TEXTS)
        with pytest.raises(CacheCorruptError, match="while it was served"):
            model.encode(TEXTS, between_layers=cut)


def test_damage_that_is_found_while_opening_is_mended_at_once(settings: Settings):
    """The first layer is opened and checked before any request comes."""
    prepare_model(settings, unreported)
    damage(packed_of(settings)[0], "0.project")

    with opened(settings) as model:
        assert np.isfinite(model.encode(TEXTS)).all()


def test_damage_that_is_found_while_packing_is_mended_at_once(
    settings: Settings, caplog: pytest.LogCaptureFixture
):
    """The damaged map has to be closed first, under an error whose frames were reading it."""
    prepare_model(settings, unreported)
    (folder,) = packed_of(settings)
    shutil.rmtree(folder)
    with closing(Sidecar(folder.parent)) as sidecar:
        path, place = sidecar.weights_path, sidecar.index.tensors["blk.1.ffn_up.weight"]
    with path.open("r+b") as file:
        file.seek(place.offset)
        file.write(b"damage")

    with opened(settings) as model:
        assert np.isfinite(model.encode(TEXTS)).all()

    assert "model is made again" in caplog.text


def test_verifying_the_cache_finds_it_too(settings: Settings):
    """`plimsoll cache verify` reads every byte of either file."""
    prepare_model(settings, unreported)
    (entry,) = list_sidecars(settings.cache_dir)
    assert verify(entry) == []
    assert 0 < entry.packed_bytes < entry.n_bytes
    damage(packed_of(settings)[0], "0.project")

    (found,) = verify(entry)

    assert "0.project" in found.place
    assert packed_of(settings) == []


@pytest.mark.parametrize("damage", ["index", "size", "missing"])
def test_a_packed_file_that_does_not_open_is_made_again(
    settings: Settings, damage: str, caplog: pytest.LogCaptureFixture
):
    """A crash, or a hand in the cache folder, would keep the model from opening for ever."""
    folder = spoiled(settings, damage)

    with caplog.at_level(logging.WARNING), opened(settings) as model:
        assert np.isfinite(model.encode(TEXTS)).all()
        assert str(folder) in Path("/proc/self/maps").read_text()

    assert f"packed weights are not taken: {folder / PACKED_NAME}" in caplog.text


@pytest.mark.parametrize("damage", ["index", "size", "missing"])
def test_verifying_the_cache_says_why_a_packed_file_does_not_open(settings: Settings, damage: str):
    """And goes on to the next one."""
    folder = spoiled(settings, damage)
    (entry,) = list_sidecars(settings.cache_dir)

    (found,) = verify(entry)

    assert found.place == folder.name
    assert str(folder / PACKED_NAME) in found.fault
    assert packed_of(settings) == []


def test_a_packed_file_that_the_system_refuses_is_done_without(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """The slower road serves, and the log says why."""
    prepare_model(settings, unreported)

    def refuse(*given: object, **options: object) -> None:
        raise CacheError("too many open files")

    monkeypatch.setattr(packed, "IndexedFile", refuse)
    with caplog.at_level(logging.WARNING), opened(settings) as model:
        assert np.isfinite(model.encode(TEXTS)).all()

    assert "packed at every call: packed weights cannot be opened: too many open" in caplog.text


@pytest.mark.parametrize(
    "where", ["packing", "opening", "opening without packed weights", "opening an engine"]
)
def test_refused_memory_is_told_as_such_and_changes_no_road(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    caplog: pytest.LogCaptureFixture,
):
    """A moment's want must not make the model slow until it is closed; it is tried again."""

    def fail(*given: object, **options: object) -> None:
        raise RuntimeError("[ONNXRuntimeError] : Exception during initialization: std::bad_alloc")

    with monkeypatch.context() as patched:
        if where == "packing":
            patched.setattr(packing.ort, "InferenceSession", fail)
        elif where == "opening":
            prepare_model(settings, unreported)
            patched.setattr(packed_weights, "open_session", fail)
        elif where == "opening an engine":
            patched.setattr(OnnxBackend, "open_runner", fail)
        else:
            patched.setattr(packing, "EXTERNAL_NAME", "no/such/folder")
            patched.setattr(onnx_runtime, "open_session", fail)
        with pytest.raises(EncodeMemoryError, match=r"no memory to open model with: .*bad_alloc"):
            open_model(settings, unreported)

    assert ("packed at every call" in caplog.text) == (where == "opening without packed weights")
    with opened(settings) as model:
        assert np.isfinite(model.encode(TEXTS)).all()


@pytest.mark.parametrize("road", ["packed", "inputs"])
def test_what_has_been_verified_is_not_gone_over_by_every_run(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, road: str
):
    """That took a short text's run a quarter of a millisecond."""
    if road == "inputs":
        monkeypatch.setattr(packing, "EXTERNAL_NAME", "no/such/folder")
    with opened(settings) as model:
        model.encode(TEXTS)
        monkeypatch.setattr(CheckedFile, "verify", lambda *given: pytest.fail("gone over again"))

        model.encode(TEXTS)


def test_an_open_model_is_closed_with_nothing_mapped(settings: Settings):
    """Half a gigabyte would stay mapped, and an evicted file on the disk."""
    model = open_model(settings, unreported)
    with closing(model):
        model.encode(TEXTS)
        model.encode(TEXTS[:1])
        (folder,) = packed_of(settings)
        assert files.in_use(folder / "index.json")
    assert str(folder) not in Path("/proc/self/maps").read_text()
    assert not files.in_use(folder / "index.json")


def test_sessions_are_unmapped_while_no_pages_are_dropped(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    """Another open model may have the same file mapped, and have just read where."""
    lock = threading.Lock()
    monkeypatch.setattr(mappings, "_dropping", lock)
    opening = packed_weights.open_session
    is_held: list[bool] = []

    def watched(*given: Any) -> Any:
        session = opening(*given)
        weakref.finalize(session, lambda: is_held.append(lock.locked()))
        return session

    monkeypatch.setattr(packed_weights, "open_session", watched)
    with opened(settings) as model:
        model.encode(TEXTS)
        model.encode(TEXTS[:1])
        assert is_held == []

    assert is_held == [True] * (2 * NARROW.n_layers + 1)
