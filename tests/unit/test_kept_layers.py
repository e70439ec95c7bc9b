"""Layers that stay in memory while the others leave it: which pages, and the same vectors."""

import ctypes
import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from app.encoder.model import EmbeddingModel
from app.gguf.storage import memory_file_system
from tests.small_models import NARROW, opened, small_settings
from tests.synthetic import CLS, SEP, write_synthetic

WAVE = [np.array([CLS, *range(200, 200 + n), SEP], np.int64) for n in (30, 7)]


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


def test_vectors_are_the_same_whatever_stays(model: EmbeddingModel):
    """Which pages are in memory is nobody's business but the server's."""
    plain = model.encode(WAVE)
    for n_layers in (0, 1, 2, 9):
        kept = model.encode(WAVE, drop_pages=True, kept_layers=n_layers)
        assert np.array_equal(kept, plain)


@pytest.mark.skipif(sys.platform != "linux", reason="mincore works another way")
def test_pages_of_kept_layers_stay_and_those_of_others_leave_the_cache(
    model: EmbeddingModel, tmp_path: Path
):
    """Left in the cache they would push out the ones that are to stay."""
    (weights,) = tmp_path.glob("cache/sidecars/*/weights.f32")
    if memory_file_system(weights):
        pytest.skip("files here are memory")
    tensors = model._weights._sidecar.index.tensors  # which bytes belong to which layer
    kept, dropped = (tensors[f"blk.{layer}.ffn_down.weight"] for layer in (0, 1))

    model.encode(WAVE, drop_pages=True, kept_layers=1)

    assert cached_ratio(weights, kept.offset, kept.n_bytes) == 1
    assert cached_ratio(weights, dropped.offset, dropped.n_bytes) < 0.1
