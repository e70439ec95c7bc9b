"""The engine over two backends: it knows them by the protocol alone, and they agree."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plimsoll.encoder.architecture import Architecture, read_architecture
from plimsoll.encoder.backends.onnx_backend import OnnxBackend
from plimsoll.encoder.backends.packed_weights import PackedWeights
from plimsoll.encoder.backends.packing import open_packed
from plimsoll.encoder.backends.protocol import Backend, OpenBackend
from plimsoll.encoder.engine import Engine
from plimsoll.encoder.layout import ATTEND_TOKENS, PACK_TOKENS, largest_slice
from plimsoll.encoder.weights import Weights, layer_arrays
from plimsoll.sidecar.loader import StreamingGGUFLoader
from plimsoll.sidecar.sidecar import Sidecar
from tests.encoder.numpy_backend import NumpyBackend
from tests.synthetic import CLS, MASK, SEP, Shape, write_synthetic

SHAPE = Shape(n_layers=2, hidden=64, ffn=128, heads=4, vocab=2048, context=1200)
# A few short texts, packs and a lone long text; slices of both kinds.
RUNS = [[2], [12], [64, 3], [30, 7, 30], [PACK_TOKENS + 90, 40, 200, 150], [ATTEND_TOKENS + 76, 5]]


@pytest.fixture(scope="module", params=["bert", "nomic-bert"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic model's folder, of each architecture."""
    folder = tmp_path_factory.mktemp("engine")
    write_synthetic(folder / "model.gguf", arch=request.param, shape=SHAPE)
    return folder


def open_packed_backend(sidecar: Sidecar, architecture: Architecture, *opened: Any) -> OnnxBackend:
    """The backend over packed weights, as the server opens it."""
    packed = open_packed(sidecar, architecture, layer_arrays(architecture, sidecar))
    return OnnxBackend(architecture, *opened, packed=packed)


@contextmanager
def engine_over(
    folder: Path, open_backend: OpenBackend | None, *, n_threads: int
) -> Iterator[tuple[Engine, Backend]]:
    """open_backend: None for packed weights."""
    sidecar = StreamingGGUFLoader(folder, allow_memory_backed=True).load(folder / "model.gguf")
    architecture = read_architecture(sidecar.header)
    weights = Weights(architecture, sidecar)
    opening = open_backend or partial(open_packed_backend, sidecar)
    backend = opening(architecture, weights.embedding(), weights.layers())
    engine = Engine(architecture, weights, backend, n_threads=n_threads)
    try:
        yield engine, backend
    finally:
        engine.close()
        backend.close()
        weights.close()
        sidecar.close()


def texts(lengths: list[int]) -> list[np.ndarray]:
    rng = np.random.default_rng(sum(lengths))
    return [
        np.array([CLS, *rng.integers(MASK + 1, SHAPE.vocab, n - 2), SEP], np.int64) for n in lengths
    ]


ROADS = pytest.mark.parametrize("open_backend", [None, OnnxBackend], ids=["packed", "inputs"])


@ROADS
@pytest.mark.parametrize("drop_pages", [False, True])
def test_every_backend_gives_the_same_states(
    folder: Path, open_backend: OpenBackend | None, drop_pages: bool
):
    """An independent reading of every operation, by way of the seam that any backend takes."""
    with (
        engine_over(folder, open_backend, n_threads=2) as (ours, _),
        engine_over(folder, NumpyBackend, n_threads=2) as (theirs, _),
    ):
        for lengths in RUNS:
            run = texts(lengths)
            for mine, reference in zip(
                ours.encode(run, drop_pages=drop_pages), theirs.encode(run), strict=True
            ):
                assert mine.shape == reference.shape
                np.testing.assert_allclose(mine, reference, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("lengths", [[2], [3], [33], [300]])
def test_a_lone_text_passes_the_whole_model_at_once_with_the_bits_of_the_layers(
    folder: Path, lengths: list[int]
):
    """One call instead of one for each operation; dropping pages needs the layers apart."""
    with engine_over(folder, None, n_threads=2) as (engine, backend):
        assert isinstance(backend, OnnxBackend)
        run = texts(lengths)

        (by_layers,) = engine.encode(run, drop_pages=True)
        (at_once,) = engine.encode(run)

        assert at_once.tobytes() == by_layers.tobytes()


@ROADS
def test_a_model_with_a_short_context_takes_whole_packs(
    tmp_path: Path, open_backend: OpenBackend | None
):
    """Packs have more rows than its rotary tables have positions; longer texts have own tables."""
    write_synthetic(tmp_path / "model.gguf", shape=replace(SHAPE, context=40))
    run = texts([40, 12, 40, 55, 9, 130, 38, 40])
    with engine_over(tmp_path, open_backend, n_threads=2) as (engine, _):
        for n_threads in (1, 2):
            joined = engine.encode(run, n_threads=n_threads)
            for together, ids in zip(joined, run, strict=True):
                (alone,) = engine.encode([ids])
                assert together.tobytes() == alone.tobytes()


def test_parallelism_that_goes_to_and_fro_opens_nothing_again(folder: Path):
    """To open a session over the whole model packs all its weights in passing."""
    with engine_over(folder, None, n_threads=2) as (engine, backend):
        two, one = backend.open_whole(2), backend.open_whole(1)
        assert one is not two
        states = engine.encode(texts([9]), n_threads=1)[0]
        assert states.tobytes() == engine.encode(texts([9]), n_threads=2)[0].tobytes()
        assert (backend.open_whole(2), backend.open_whole(1)) == (two, one)

        backend.open_whole(3)

        assert backend.open_whole(1) is one
        assert backend.open_whole(2) is not two  # of many numbers of threads not all stay


@pytest.mark.parametrize("n_texts", [1, 2], ids=["at once", "by layers"])
def test_where_memory_to_open_is_refused_sessions_that_are_open_serve(
    folder: Path, n_texts: int, monkeypatch: pytest.MonkeyPatch
):
    """A run's last try has one thread, and comes when memory is short already."""
    with engine_over(folder, None, n_threads=2) as (engine, _):
        expected = engine.encode(n_texts * texts([9]))[0]

        def refuse(*given: object) -> None:
            raise RuntimeError("[ONNXRuntimeError] : std::bad_alloc")

        monkeypatch.setattr(PackedWeights, "open_whole", refuse)

        assert engine.encode(texts([9]), n_threads=1)[0].tobytes() == expected.tobytes()


class WatchedBackend(NumpyBackend):
    """Notes what the engine tells it of sizes."""

    def __init__(self, *opened: object) -> None:
        super().__init__(*opened)
        self.prepared: list[int] = []
        self.taken: list[int] = []

    def prepare(self, slice_tokens: int) -> None:
        self.prepared.append(slice_tokens)

    def project(self, layer: int, states: np.ndarray, *rest: object) -> None:
        self.taken.append(len(states))
        super().project(layer, states, *rest)


@pytest.mark.parametrize("lengths", RUNS)
def test_a_backend_is_told_its_largest_slice_before_a_run(folder: Path, lengths: list[int]):
    """It sizes its memory by that: a larger slice would come on top of what it holds."""
    with engine_over(folder, WatchedBackend, n_threads=2) as (engine, backend):
        engine.encode(texts(lengths))

        assert backend.prepared == [max(backend.taken)]
        assert max(backend.taken) <= largest_slice(sum(lengths))
        assert min(backend.taken) > 1  # a lone row has bits of its own
