"""Packing with ONNX Runtime itself: what it finds again, and what is noticed when it does not."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from plimsoll.encoder.architecture import read_architecture
from plimsoll.encoder.backends import packed_weights, packing
from plimsoll.encoder.backends.onnx_constants import PlainWeights
from plimsoll.encoder.backends.onnx_runtime import build_graphs
from plimsoll.encoder.backends.packed_weights import PackedWeights, graph_names
from plimsoll.encoder.backends.packing import open_packed, packing_status
from plimsoll.encoder.weights import layer_arrays
from plimsoll.errors import CacheCorruptError, PackingError
from plimsoll.sidecar.loader import StreamingGGUFLoader
from plimsoll.sidecar.packed import PackedFile, packed_folders
from plimsoll.sidecar.sidecar import Sidecar
from tests.synthetic import Shape, write_synthetic

SHAPE = Shape(n_layers=2, hidden=512, ffn=1024, heads=8, vocab=2048)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("packing") / "model.gguf", shape=SHAPE)


@pytest.fixture
def sidecar(model: Path, tmp_path: Path):
    sidecar = StreamingGGUFLoader(tmp_path, allow_memory_backed=True).load(model)
    yield sidecar
    sidecar.close()


def packed_of(sidecar: Sidecar) -> PackedWeights:
    architecture = read_architecture(sidecar.header)
    return open_packed(sidecar, architecture, layer_arrays(architecture, sidecar))


def open_sessions(sidecar: Sidecar, packed: PackedWeights) -> None:
    architecture = read_architecture(sidecar.header)
    packed.open_layers(build_graphs(architecture), layer_arrays(architecture, sidecar))


def test_every_matrix_has_a_blob_and_is_packed_once(sidecar: Sidecar):
    """Seven a layer: what has none would be packed on the heap."""
    with closing(packed_of(sidecar)) as packed:
        open_sessions(sidecar, packed)
    (folder,) = packed_folders(sidecar.folder)
    with closing(PackedFile(folder)) as file:
        names = [name for layer in range(SHAPE.n_layers) for name in graph_names(layer)]
        assert [len(file.blobs(name)) for name in names] == [3, 4] * SHAPE.n_layers
        assert file.index.made_by.startswith("ONNX Runtime")
        made = (folder / "packed.bin").stat().st_mtime_ns
    packed_of(sidecar).close()
    assert (folder / "packed.bin").stat().st_mtime_ns == made


def test_another_library_or_processor_packs_anew_and_removes_the_old(
    sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch
):
    """It finds nothing of what others packed."""
    packed_of(sidecar).close()
    before = packed_folders(sidecar.folder)
    monkeypatch.setattr(packing, "made_by", lambda: "another")
    packed_of(sidecar).close()
    after = packed_folders(sidecar.folder)

    assert (len(before), len(after)) == (1, 1)
    assert before != after


def test_blobs_that_are_not_taken_are_noticed_by_the_heap(sidecar: Sidecar):
    """ONNX Runtime packs on the heap in silence where it does not find them."""
    packed_of(sidecar).close()
    (folder,) = packed_folders(sidecar.folder)
    architecture = read_architecture(sidecar.header)
    other = [
        {name: np.flip(array, 0).copy() for name, array in arrays.items()}
        for arrays in layer_arrays(architecture, sidecar)
    ]
    flat = np.concatenate([array.ravel() for arrays in other for array in arrays.values()])
    path = sidecar.folder.parent / "other.f32"
    flat.tofile(path)
    starts: dict[int, int] = {}
    offset = 0
    for arrays in other:
        for array in arrays.values():
            starts[array.ctypes.data] = offset
            offset += array.nbytes
    plain = PlainWeights(lambda array: (path.resolve(), starts[array.ctypes.data]))
    with (
        closing(PackedWeights(PackedFile(folder), plain)) as packed,
        pytest.raises(PackingError, match="on the heap"),
    ):
        packed.open_layers(build_graphs(architecture), other)


def test_what_others_allocate_at_the_time_is_not_taken_for_blobs(
    sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch
):
    """A model that opens beside requests for another would be the slower one until it is closed."""
    readings = iter([0, 1 << 30, 1 << 30, 1 << 30])  # a neighbour's gigabyte, in the first try
    monkeypatch.setattr(packed_weights, "own_anonymous_bytes", lambda: next(readings))

    with closing(packed_of(sidecar)) as packed:
        open_sessions(sidecar, packed)

    assert next(readings, None) is None


def test_a_damaged_plain_matrix_is_found_before_it_is_packed_in_passing(sidecar: Sidecar):
    """Its packed form is none of the blobs, so it would be used from the heap, unnoticed."""
    packed_of(sidecar).close()
    place = sidecar.index.tensors["blk.1.ffn_up.weight"]
    with sidecar.weights_path.open("r+b") as file:
        file.seek(place.offset + 99)
        file.write(b"\x17")
    architecture = read_architecture(sidecar.header)
    with closing(Sidecar(sidecar.folder)) as again, closing(packed_of(again)) as packed:
        packed.open_layers(build_graphs(architecture), layer_arrays(architecture, again))
        with pytest.raises(CacheCorruptError):
            packed.verify_all()


def test_damage_that_is_found_while_packing_is_no_lack_of_room(sidecar: Sidecar):
    """The opener makes the sidecar again, instead of going on with wrong weights."""
    place = sidecar.index.tensors["blk.0.attn_qkv.weight"]
    with sidecar.weights_path.open("r+b") as file:
        file.seek(place.offset + 3)
        file.write(b"\x17")
    with pytest.raises(CacheCorruptError):
        packed_of(sidecar)
    assert packed_folders(sidecar.folder) == []


def test_where_packing_does_not_work_the_reason_is_told(
    sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch
):
    """`doctor` asks, and the opener goes the other way."""
    monkeypatch.setattr(packing, "EXTERNAL_NAME", "no/such/folder")
    packing_status.cache_clear()
    try:
        reason = packing_status()
        assert reason is not None
        assert "packs no weights" in reason
    finally:
        packing_status.cache_clear()
    with pytest.raises(PackingError, match="packs no weights"):
        packed_of(sidecar)
    assert packed_folders(sidecar.folder) == []


def test_this_machine_packs():
    """All of this project's measurements stand on it."""
    assert packing_status() is None
