"""Layers that stay in memory while the others leave it: which pages, and the same vectors."""

import ctypes
import mmap
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from plimsoll.encoder.model import EmbeddingModel
from plimsoll.files import memory_file_system
from plimsoll.sidecar.packed import PACKED_NAME, PackedFile
from tests.small_models import NARROW, opened, small_settings
from tests.synthetic import CLS, SEP, write_synthetic

TEXTS = [np.array([CLS, *range(200, 200 + n), SEP], np.int64) for n in (30, 7)]


@pytest.fixture
def model(tmp_path: Path):
    file = write_synthetic(tmp_path / "model.gguf", shape=NARROW)
    with opened(small_settings(tmp_path, file, threads=1)) as model:
        yield model


def cached_ratio(path: Path, start: int, n_bytes: int) -> float:
    """Share of a part of a file that is in the file cache, by mincore(2)."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
        first = start + -start % mmap.PAGESIZE
        whole = n_bytes - (first - start)
        view = np.frombuffer(pages, np.uint8)
        flags = (ctypes.c_ubyte * -(-whole // mmap.PAGESIZE))()
        address = ctypes.c_void_p(view.ctypes.data + first)
        assert ctypes.CDLL(None).mincore(address, ctypes.c_size_t(whole), flags) == 0
        del view
    return sum(flag & 1 for flag in flags) / len(flags)


def test_vectors_are_the_same_with_any_number_of_kept_layers(model: EmbeddingModel):
    """Which pages are in memory is the server's business alone."""
    plain = model.encode(TEXTS)
    for n_layers in (0, 1, 2, 9):
        kept = model.encode(TEXTS, drop_pages=True, kept_layers=n_layers)
        assert np.array_equal(kept, plain)


@pytest.mark.skipif(sys.platform != "linux", reason="mincore works another way")
def test_pages_of_kept_layers_stay_and_those_of_others_leave_the_cache(
    model: EmbeddingModel, tmp_path: Path
):
    """Left in the cache they would push out the ones that are to stay."""
    (packed,) = tmp_path.glob("cache/sidecars/*/packed-*")
    if memory_file_system(packed):
        pytest.skip("files here are memory")
    with closing(PackedFile(packed)) as file:
        blobs = [max(file.blobs(f"{layer}.transform"), key=lambda b: b.n_bytes) for layer in (0, 1)]
    kept, dropped = blobs  # the largest of each layer

    model.encode(TEXTS, drop_pages=True, kept_layers=1)

    path = packed / PACKED_NAME
    assert cached_ratio(path, kept.offset, kept.n_bytes) == 1
    assert cached_ratio(path, dropped.offset, dropped.n_bytes) < 0.1
