"""What a text's vector may depend on, down to its bits.

With `exact` on the text, the options and the weights alone. Without it, texts share matrices:
company moves a value by rounding and nothing else does, neither the number of threads nor
whether pages are dropped.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.encoder.engine import PACK_TOKENS
from app.encoder.model import EmbeddingModel
from tests.small_models import NARROW, opened, small_settings
from tests.synthetic import CLS, MASK, SEP, write_synthetic

MAX_TOKENS = 2048
# Where a kernel, a pack, a slice or a single row begins or ends, one to either side.
EDGES = (2, 3, 4, 11, 12, 13, 16, 17, 31, 63, 64, 65, 66, 127, 255, 256, 257, 1023, 1024, 1025,
         1026, 2047, 2048)  # fmt: skip
VALUE_BOUND = 1e-6
COSINE_BOUND = 1e-11


class Engines:
    """The same weights opened four times. Remembers what each text gave alone."""

    def __init__(self, exact: Sequence[EmbeddingModel], packed: Sequence[EmbeddingModel]) -> None:
        self.exact = exact
        self.packed = packed
        self._alone: dict[tuple[bool, int], np.ndarray] = {}

    def alone(self, length: int, *, exact: bool) -> np.ndarray:
        """A text's pooled vector from a wave of its own, on one thread, pages kept."""
        if (exact, length) not in self._alone:
            model = (self.exact if exact else self.packed)[0]
            self._alone[exact, length] = model.encode([text(length)])[0]
        return self._alone[exact, length]


@pytest.fixture(scope="module", params=["bert", "nomic-bert"])
def engines(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engines]:
    folder = tmp_path_factory.mktemp("bits")
    file = write_synthetic(folder / "model.gguf", arch=request.param, shape=NARROW)
    with ExitStack() as stack:
        exact, packed = (
            [
                stack.enter_context(opened(small_settings(folder, file, threads=n, exact=is_exact)))
                for n in (1, 2)
            ]
            for is_exact in (True, False)
        )
        yield Engines(exact, packed)


def text(length: int) -> np.ndarray:
    """The one text of this length: ids between [CLS] and [SEP]."""
    words = np.random.default_rng(length).integers(MASK + 1, NARROW.vocab, length - 2)
    return np.array([CLS, *words, SEP], np.int64)


def wave(lengths: Sequence[int]) -> list[np.ndarray]:
    return [text(length) for length in lengths]


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def assert_same_bits(ours: np.ndarray, theirs: np.ndarray, lengths: Sequence[int]) -> None:
    different = [
        length
        for length, a, b in zip(lengths, ours, theirs, strict=True)
        if a.tobytes() != b.tobytes()
    ]
    assert not different, f"texts of {different} tokens have other bits"


LENGTHS = st.one_of(st.sampled_from(EDGES), st.integers(2, 300))
WAVES = st.lists(LENGTHS, min_size=1, max_size=8).filter(lambda lengths: sum(lengths) <= 2200)
searched = settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


# --- exact ----------------------------------------------------------------------------------


@searched
@given(lengths=WAVES, n_threads=st.sampled_from([1, 2]), drop_pages=st.booleans())
def test_an_exact_vector_depends_on_its_text_alone(
    engines: Engines, lengths: list[int], n_threads: int, drop_pages: bool
):
    """A migration may stop and go on on other machines' cores, in other batches."""
    model = engines.exact[n_threads - 1]

    vectors = model.encode(wave(lengths), drop_pages=drop_pages)

    assert_same_bits(vectors, [engines.alone(n, exact=True) for n in lengths], lengths)


@pytest.mark.parametrize("length", EDGES)
def test_an_exact_vector_of_each_odd_length_is_the_same_in_company(engines: Engines, length: int):
    """Where kernels, slices and packs meet; with both threads at work."""
    lengths = [5, length, 40, 7]

    vectors = engines.exact[1].encode(wave(lengths))

    assert_same_bits(vectors, [engines.alone(n, exact=True) for n in lengths], lengths)


def test_exact_vectors_do_not_depend_on_their_order(engines: Engines):
    """Inside, the longest go first."""
    lengths = [5, 300, 64, 12, 130, 2]

    forth = engines.exact[1].encode(wave(lengths))
    back = engines.exact[1].encode(wave(lengths[::-1]))

    assert_same_bits(forth, back[::-1], lengths)


def test_exact_vectors_are_near_packed_ones(engines: Engines):
    """Exact is another order of rounding, not another model."""
    for length in EDGES[:-3]:
        assert_near(engines.alone(length, exact=True), engines.alone(length, exact=False), length)


# --- packed ---------------------------------------------------------------------------------


def assert_near(ours: np.ndarray, theirs: np.ndarray, length: int) -> None:
    """Unit vectors within what company may move."""
    a, b = unit(ours), unit(theirs)
    moved = np.abs(a - b).max()
    assert moved <= VALUE_BOUND, f"a text of {length} tokens moved by {moved:.2e} a value"
    # 1 - cosine of unit vectors, without the cancellation.
    apart = 0.5 * ((a - b) ** 2).sum()
    assert apart < COSINE_BOUND, f"a text of {length} tokens: 1 - cosine is {apart:.2e}"


@searched
@given(lengths=WAVES, drop_pages=st.booleans())
def test_threads_and_dropped_pages_never_change_a_bit(
    engines: Engines, lengths: list[int], drop_pages: bool
):
    """The ladder goes up and down under load; the same request must not notice."""
    kept = engines.packed[0].encode(wave(lengths))
    other = engines.packed[1].encode(wave(lengths), drop_pages=drop_pages)

    assert_same_bits(other, kept, lengths)


@searched
@given(lengths=WAVES)
def test_company_moves_a_vector_by_rounding_alone(engines: Engines, lengths: list[int]):
    """Other clients' texts share the matrices, and must not be found in the vector."""
    vectors = engines.packed[1].encode(wave(lengths))

    for length, vector in zip(lengths, vectors, strict=True):
        assert_near(vector, engines.alone(length, exact=False), length)


@searched
@given(
    lengths=st.lists(st.integers(PACK_TOKENS, PACK_TOKENS + 150), min_size=2, max_size=3),
    n_first=st.integers(1, 2),
)
def test_texts_that_share_no_pack_do_not_see_how_waves_are_split(
    engines: Engines, lengths: list[int], n_first: int
):
    """From a pack's size on, every text has its matrices to itself."""
    whole = engines.packed[1].encode(wave(lengths))
    n_first = min(n_first, len(lengths) - 1)
    parts = [
        engines.packed[1].encode(wave(part)) for part in (lengths[:n_first], lengths[n_first:])
    ]

    assert_same_bits(np.concatenate(parts), whole, lengths)
