"""An open model's life, and what it says of itself."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.encoder.architecture import Pooling
from app.encoder.catalog import NOMIC_V1, NOMIC_V1_5
from app.encoder.model import EmbeddingModel, Traits
from app.errors import InvalidRequestError
from tests.fakes import DEADLINE_S, fake_traits
from tests.small_models import TINY, opened, small_settings
from tests.synthetic import write_synthetic


@pytest.fixture
def model(tmp_path: Path) -> Iterator[EmbeddingModel]:
    file = write_synthetic(tmp_path / "tiny.gguf", arch="bert", shape=TINY)
    with opened(small_settings(tmp_path, file, threads=1)) as model:
        yield model


class HeldEngine:
    """Computes when it is let; notes whether it was closed meanwhile."""

    def __init__(self) -> None:
        self.encoding = threading.Event()
        self.released = threading.Event()
        self.closed = threading.Event()
        self.closed_under_a_wave = False

    def encode(self, wave: list[np.ndarray], **options: object) -> list[np.ndarray]:
        self.encoding.set()
        assert self.released.wait(DEADLINE_S), "nobody released the engine"
        self.closed_under_a_wave = self.closed.is_set()
        return [np.ones((len(ids), TINY.hidden), np.float32) for ids in wave]

    def close(self) -> None:
        self.closed.set()


def test_a_model_closes_after_the_wave_under_way(
    model: EmbeddingModel, monkeypatch: pytest.MonkeyPatch
):
    """A client that hangs up leaves its wave running; unmapping under it would kill the process."""
    engine, real_engine = HeldEngine(), model._engine
    monkeypatch.setattr(model, "_engine", engine)
    monkeypatch.setattr(model._weights, "close", lambda: None)
    wave = [np.array([101, 200, 102])]
    encoding = threading.Thread(target=model.encode, args=(wave,))
    closing = threading.Thread(target=model.close)

    encoding.start()
    assert engine.encoding.wait(DEADLINE_S)
    closing.start()
    engine.released.set()
    encoding.join()
    closing.join()
    monkeypatch.undo()

    assert engine.closed.is_set()
    assert not engine.closed_under_a_wave
    assert model._engine is real_engine


# --- traits ---------------------------------------------------------------------------------


def nomic(known: object = NOMIC_V1_5) -> Traits:
    traits = fake_traits()
    architecture = replace(traits.architecture, hidden=768)
    return replace(traits, dimensions=768, known=known, architecture=architecture)


def test_the_two_halves_of_a_search_share_a_space_and_other_tasks_do_not():
    """A query that was compared with clustering vectors would find something, and it is noise."""
    traits = nomic()
    tasks = ["search_query", "search_document", "classification", "clustering", None]

    query, document, classes, clusters, plain = [traits.fingerprint(768, task) for task in tasks]

    assert query == document
    assert [classes, clusters, plain] == [
        f"{query}#classification",
        f"{query}#clustering",
        f"{query}#plain",
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"content_sha256": "other"},
        {"vocabulary_sha256": "other"},
        {"known": NOMIC_V1},
        {"architecture": replace(nomic().architecture, pooling=Pooling.CLS)},
    ],
)
def test_whatever_changes_vectors_changes_the_fingerprint(changes: dict[str, object]):
    """Tensors, words, Matryoshka rule and pooling; equal names promise comparable vectors."""
    cut = nomic().fingerprint(256, "search_query")

    assert replace(nomic(), **changes).fingerprint(256, "search_query") != cut


def test_the_name_of_a_model_is_not_in_its_fingerprint():
    """The same weights under another file's name are the same space."""
    assert replace(nomic(), name="other").fingerprint() == nomic().fingerprint()


@pytest.mark.parametrize("dimensions", [1, 256, 768])
def test_a_size_within_the_models_is_taken(dimensions: int):
    """Any of them, trained or not."""
    assert nomic().check_dimensions(dimensions) == dimensions


@pytest.mark.parametrize("dimensions", [0, -1, 769])
def test_a_size_that_the_model_does_not_have_is_refused_with_those_it_has(dimensions: int):
    """Padding with zeros would pass every check but the user's."""
    with pytest.raises(InvalidRequestError, match="1 to 768") as refused:
        nomic().check_dimensions(dimensions)
    assert refused.value.param == "dimensions"


def test_only_sizes_that_were_not_trained_for_are_warned_about():
    """A warning that is always there is not read."""
    for dimensions in (768, 512, 256, 128, 64):
        assert nomic().warnings(dimensions, "search_query") == []
    (warning,) = nomic().warnings(100, "search_query")
    assert "100" in warning
    assert "512, 256, 128, 64" in warning
