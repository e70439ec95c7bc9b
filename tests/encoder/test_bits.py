"""What a text's vector may depend on, down to its bits: text, options and weights alone.

Neither on the texts beside it, nor on threads, nor on dropped pages; with packed weights, where
these cannot be had, and in int8.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plimsoll.encoder.model import EmbeddingModel
from plimsoll.errors import PackingError
from plimsoll.machine.instructions import has_int8_products
from plimsoll.models import opener, quantizing
from tests.small_models import NARROW, draw_few_samples, opened, small_settings
from tests.synthetic import CLS, MASK, SEP, write_synthetic

MAX_TOKENS = 2048
# Where rows are divided, a pack, a slice or a single row begins or ends, one to either side.
EDGES = (2, 3, 4, 11, 12, 13, 16, 17, 31, 33, 63, 64, 65, 66, 127, 255, 256, 257, 511, 512, 513,
         1023, 1024, 1025, 1026, 2047, 2048)  # fmt: skip


class Engines:
    """The same weights opened for one thread and for two. Remembers what each text gave alone."""

    def __init__(self, models: Sequence[EmbeddingModel]) -> None:
        self.models = models
        self._alone: dict[int, np.ndarray] = {}

    def alone(self, length: int) -> np.ndarray:
        """A text's pooled vector from a run of its own, on one thread, pages kept."""
        if length not in self._alone:
            self._alone[length] = self.models[0].encode([text(length)])[0]
        return self._alone[length]


def refuse(*given: object) -> None:
    """Stand in for packing where it cannot be had."""
    raise PackingError("not in this test")


@pytest.fixture(scope="module", params=["bert", "nomic-bert"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bits")
    return write_synthetic(folder / "model.gguf", arch=request.param, shape=NARROW)


@pytest.fixture(scope="module", params=["packed", "inputs", "int8"])
def engines(request: pytest.FixtureRequest, file: Path) -> Iterator[Engines]:
    options: dict[str, Any] = {}
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patched:
        if request.param == "inputs":
            patched.setattr(opener, "open_packed", refuse)
        if request.param == "int8":
            if not has_int8_products():
                pytest.skip("this processor has no int8 products")
            options = {"compute": "int8", "min_cosine": 0}
            patched.setattr(quantizing, "draw_samples", draw_few_samples)
        models = [
            stack.enter_context(opened(small_settings(file.parent, file, threads=n, **options)))
            for n in (1, 2)
        ]
        yield Engines(models)


def text(length: int) -> np.ndarray:
    """The one text of this length: ids between [CLS] and [SEP]."""
    words = np.random.default_rng(length).integers(MASK + 1, NARROW.vocab, length - 2)
    return np.array([CLS, *words, SEP], np.int64)


def texts(lengths: Sequence[int]) -> list[np.ndarray]:
    return [text(length) for length in lengths]


def assert_same_bits(
    ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], lengths: Sequence[int]
) -> None:
    different = [
        length
        for length, a, b in zip(lengths, ours, theirs, strict=True)
        if a.tobytes() != b.tobytes()
    ]
    assert not different, f"texts of {different} tokens have other bits"


LENGTHS = st.one_of(st.sampled_from(EDGES), st.integers(2, 300))
RUNS = st.lists(LENGTHS, min_size=1, max_size=8).filter(lambda lengths: sum(lengths) <= 2200)
searched = settings(
    max_examples=6,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@searched
@given(lengths=RUNS, n_threads=st.sampled_from([1, 2]), drop_pages=st.booleans())
def test_a_vector_depends_on_its_text_alone(
    engines: Engines, lengths: list[int], n_threads: int, drop_pages: bool
):
    """A migration may stop and go on on other machines' cores, in other batches."""
    model = engines.models[n_threads - 1]

    vectors = model.encode(texts(lengths), drop_pages=drop_pages)

    assert_same_bits(vectors, [engines.alone(n) for n in lengths], lengths)


@pytest.mark.parametrize("length", EDGES)
def test_a_vector_of_each_odd_length_is_the_same_in_company(engines: Engines, length: int):
    """Where rows are divided, slices and packs meet; with both threads at work."""
    lengths = [5, length, 40, 7]

    vectors = engines.models[1].encode(texts(lengths))

    assert_same_bits(vectors, [engines.alone(n) for n in lengths], lengths)


@pytest.mark.parametrize("length", EDGES)
def test_a_lone_vector_is_the_same_on_any_number_of_threads(engines: Engines, length: int):
    """Alone it takes another way than in company: all layers at once, or its rows divided."""
    (vector,) = engines.models[1].encode(texts([length]))

    assert_same_bits([vector], [engines.alone(length)], [length])


def test_vectors_do_not_depend_on_their_order(engines: Engines):
    """Inside, the longest go first."""
    lengths = [5, 300, 64, 12, 130, 2]

    forth = engines.models[1].encode(texts(lengths))
    back = engines.models[1].encode(texts(lengths[::-1]))

    assert_same_bits(forth, back[::-1], lengths)


@pytest.mark.parametrize("other", [2, 40, 700])
def test_texts_between_the_layers_of_others_change_no_bit(engines: Engines, other: int):
    """A short query is let in there; both use the same sessions, arena and threads."""
    model, lengths = engines.models[1], [5, 300, 64]
    let_in: list[np.ndarray] = []

    vectors = model.encode(
        texts(lengths), between_layers=lambda: let_in.append(model.encode(texts([other]))[0])
    )

    assert_same_bits(vectors, [engines.alone(n) for n in lengths], lengths)
    assert let_in
    assert_same_bits(let_in, [engines.alone(other)] * len(let_in), [other] * len(let_in))


@pytest.mark.parametrize("pack_tokens", [64, 128, 256])
def test_smaller_packs_never_change_a_bit(engines: Engines, pack_tokens: int):
    """The ladder makes packs smaller under load; the same request must not notice."""
    lengths = [5, 300, 64, 12, 130, 2, 90]

    vectors = engines.models[1].encode(texts(lengths), pack_tokens=pack_tokens)

    assert_same_bits(vectors, [engines.alone(n) for n in lengths], lengths)
