"""An open model's life, and what it says of itself."""

import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plimsoll.encoder.architecture import Pooling
from plimsoll.encoder.catalog import SHAPES
from plimsoll.encoder.known_models import BGE_EN, GTE, NOMIC_V1, NOMIC_V1_5, KnownModel
from plimsoll.encoder.model import EmbeddingModel
from plimsoll.encoder.traits import Traits
from plimsoll.encoder.weight_sizes import WeightSizes
from plimsoll.encoder.weights import rotary_tables
from plimsoll.errors import EncodeMemoryError, InvalidRequestError
from plimsoll.sidecar.loader import StreamingGGUFLoader
from tests.encoder.numpy_backend import NumpyBackend
from tests.fakes import DEADLINE_S, fake_traits
from tests.small_models import TINY, opened, small_settings
from tests.synthetic import write_synthetic


class HeldBackend(NumpyBackend):
    """Attends when it is let, and may fail then; notes whether it was closed during a run."""

    def __init__(self, *opened: Any, error: Exception | None = None) -> None:
        super().__init__(*opened)
        self.error = error
        self.attending = threading.Event()
        self.let = threading.Event()
        self.closed = threading.Event()
        self.closed_during_a_run = False

    def attend(self, *arrays: np.ndarray) -> None:
        self.attending.set()
        assert self.let.wait(DEADLINE_S), "the test never let the backend attend"
        self.closed_during_a_run |= self.closed.is_set()
        if self.error is not None:
            raise self.error
        super().attend(*arrays)

    def is_allocation_failure(self, error: Exception) -> bool:
        return "arena" in str(error)

    def close(self) -> None:
        self.closed.set()
        super().close()


def open_held(folder: Path, error: Exception | None = None) -> tuple[EmbeddingModel, HeldBackend]:
    """A tiny model over a backend that the test holds."""
    file = write_synthetic(folder / "tiny.gguf", arch="bert", shape=TINY)
    sidecar = StreamingGGUFLoader(folder, allow_memory_backed=True).load(file)
    backends: list[HeldBackend] = []

    def open_backend(*opened: Any) -> HeldBackend:
        backends.append(HeldBackend(*opened, error=error))
        return backends[-1]

    model = EmbeddingModel("tiny", sidecar, [open_backend], n_threads=1)
    return model, backends[-1]


# Of tensors and vocabulary that hash to "00" and "11".
NOMIC_FINGERPRINT = "v1:9e78cfab5acb037ecb6e27dbb98086ae"
TEXTS = [np.array([101, 200, 102])]


def test_a_model_closes_after_the_run_under_way(tmp_path: Path):
    """A client that hangs up leaves its run going; unmapping under it would kill the process."""
    model, backend = open_held(tmp_path)
    encoding = threading.Thread(target=model.encode, args=(TEXTS,))
    ending = threading.Thread(target=model.close)

    encoding.start()
    assert backend.attending.wait(DEADLINE_S)
    ending.start()
    backend.let.set()
    encoding.join()
    ending.join()

    assert backend.closed.is_set()
    assert not backend.closed_during_a_run


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (MemoryError(), EncodeMemoryError),
        (RuntimeError("no room in the arena"), EncodeMemoryError),
        (RuntimeError("a bug"), RuntimeError),
    ],
)
def test_memory_that_a_backend_was_refused_is_named_and_a_bug_is_not(
    tmp_path: Path, error: Exception, raised: type[Exception]
):
    """A run that failed for memory is tried again smaller; a bug would only fail again."""
    model, backend = open_held(tmp_path, error)
    backend.let.set()

    with closing(model), pytest.raises(raised) as failed:
        model.encode(TEXTS)

    assert failed.type is raised


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
        {"architecture": replace(nomic().architecture, n_heads=12)},
        {"architecture": replace(nomic().architecture, layer_norm_eps=1e-5)},
        {"architecture": replace(nomic().architecture, rope_base=10_000.0)},
        {"architecture": replace(nomic().architecture, rope_factor=2.0)},
        {"architecture": replace(nomic().architecture, context_tokens=8192)},
    ],
)
def test_all_that_changes_vectors_changes_the_fingerprint(changes: dict[str, object]):
    """Tensors, words, numbers, Matryoshka rule, pooling: equal names promise equal spaces."""
    cut = nomic().fingerprint(256, "search_query")

    assert replace(nomic(), **changes).fingerprint(256, "search_query") != cut


def test_the_fingerprint_of_nomic_as_published_is_fixed():
    """Stored vectors carry it; a number that became part of it would orphan them."""
    published = replace(nomic(), architecture=SHAPES[NOMIC_V1_5.name])

    assert published.fingerprint(768, "search_query") == NOMIC_FINGERPRINT
    read = replace(published.architecture, layer_norm_eps=float(np.float32(1e-12)))
    assert (
        replace(published, architecture=read).fingerprint(768, "search_query") == NOMIC_FINGERPRINT
    )


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


@pytest.mark.parametrize(
    ("room_mib", "n_layers"), [(0, 0), (-50, 0), (100, 0), (144, 2), (280, 5), (431, 9), (432, 12)]
)
def test_as_many_layers_fit_as_there_is_room_for_beside_those_under_way(
    room_mib: int, n_layers: int
):
    """The one that computes and the one that is read next need room too, unless all stay."""
    sizes = WeightSizes(520 << 20, 36 << 20, 12)  # Nomic's, and a table that takes no part
    assert sizes.fitting_layers(room_mib << 20) == n_layers


# --- warnings -------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [KnownModel("mine"), BGE_EN])
def test_an_input_type_that_does_nothing_is_told(known: KnownModel):
    """It is echoed in the answer, so that a client believes in a prefix that was not there."""
    (warning,) = nomic(known).warnings(768, "clustering")

    assert "no prefix for clustering" in warning
    assert nomic(known).warnings(768, None) == []


@pytest.mark.parametrize(
    ("known", "input_type"),
    [
        (BGE_EN, "search_query"),
        (BGE_EN, "search_document"),
        (GTE, "search_query"),
        (GTE, "search_document"),
    ],
)
def test_an_input_type_that_the_authors_have_a_rule_for_is_no_news(
    known: KnownModel, input_type: str
):
    """A document without a prefix is what they trained with."""
    assert nomic(known).warnings(768, input_type) == []


def test_what_a_file_leaves_open_is_told_with_every_use():
    """The mean may be wrong, and only the authors know."""
    traits = replace(nomic(), notes=("the pooling is a guess",))

    assert traits.warnings(768, "search_query") == ["the pooling is a guess"]


# --- files that say the same otherwise ------------------------------------------------------


def vectors_of(file: Path, folder: Path) -> np.ndarray:
    texts = [np.array([101, *range(200, 200 + n), 102]) for n in (1, 20, 300)]
    with opened(small_settings(folder, file)) as model:
        return model.encode(texts)


@pytest.mark.parametrize("arch", ["bert", "nomic-bert"])
def test_vectors_do_not_depend_on_how_queries_keys_and_values_are_stored(tmp_path: Path, arch: str):
    """To the bit: a fused matrix is cut into the three, where it lies."""
    fused, separate = (
        write_synthetic(tmp_path / f"{f}.gguf", arch=arch, shape=TINY, fused_qkv=f)
        for f in (True, False)
    )

    np.testing.assert_array_equal(vectors_of(fused, tmp_path), vectors_of(separate, tmp_path))


def test_a_model_without_type_embeddings_adds_none(tmp_path: Path):
    """DistilBERT has no such tensor."""
    file = write_synthetic(
        tmp_path / "no-types.gguf", arch="bert", shape=TINY, without=["token_types.weight"]
    )
    usual = write_synthetic(tmp_path / "usual.gguf", arch="bert", shape=TINY)

    assert np.isfinite(vectors_of(file, tmp_path)).all()
    assert np.abs(vectors_of(file, tmp_path) - vectors_of(usual, tmp_path)).max() > 1e-3


def test_positions_under_linear_scaling_lie_closer(tmp_path: Path):
    """Other vectors from the second token on; the oracle's test says which."""
    scaled = {"nomic-bert.rope.scaling.type": "linear", "nomic-bert.rope.scaling.factor": 4.0}
    file = write_synthetic(tmp_path / "scaled.gguf", shape=TINY, metadata=scaled)
    usual = write_synthetic(tmp_path / "usual.gguf", shape=TINY)

    assert np.abs(vectors_of(file, tmp_path) - vectors_of(usual, tmp_path)).max() > 1e-3


def test_half_positions_have_half_the_angles():
    """Position 2p with factor 2 is position p without one."""
    cos, sin = rotary_tables(1000.0, 16, 20, 2.0)
    plain_cos, plain_sin = rotary_tables(1000.0, 16, 10)

    np.testing.assert_array_equal(cos[::2], plain_cos)
    np.testing.assert_array_equal(sin[::2], plain_sin)
