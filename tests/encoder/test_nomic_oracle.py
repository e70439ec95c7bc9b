"""The oracles agree with each other, so that both can be trusted.

transformers and llama.cpp share no code. What they agree on for the same file: rotary base
and pairing, which of the two FFN halves goes through SiLU, where the norms stand and their
epsilon, mean pooling.
"""

from pathlib import Path

import numpy as np
import pytest

from tests.oracles import Embed, bert_reference, llama_reference, nomic_reference
from tests.synthetic import CLS, MASK, NOMIC_SHAPE, SEP, SMALL_SHAPE, cached_synthetic

pytestmark = pytest.mark.oracles

LENGTHS = [2, 17, 300, 2048]


@pytest.fixture(scope="module")
def cache_dir(request: pytest.FixtureRequest) -> Path:
    return request.config.cache.mkdir("synthetic")


@pytest.fixture(scope="module")
def nomic_path(cache_dir: Path) -> Path:
    return cached_synthetic(cache_dir)


@pytest.fixture(scope="module")
def by_transformers(nomic_path: Path) -> Embed:
    return nomic_reference(nomic_path)


@pytest.fixture(scope="module")
def by_llama(nomic_path: Path) -> Embed:
    return llama_reference(nomic_path)


def random_ids(length: int, n_vocab: int, seed: int = 0) -> list[int]:
    """Token ids of a text of `length` tokens, special tokens included."""
    rng = np.random.default_rng([seed, length])
    return [CLS, *rng.integers(MASK + 1, n_vocab, length - 2).tolist(), SEP]


@pytest.mark.parametrize("length", LENGTHS)
def test_transformers_and_llama_cpp_give_the_same_vector(
    by_transformers: Embed, by_llama: Embed, length: int
):
    """Two programs without a line in common seldom make the same mistake."""
    ids = random_ids(length, NOMIC_SHAPE.vocab)
    ours, theirs = by_transformers(ids), by_llama(ids)
    assert ours.shape == theirs.shape == (NOMIC_SHAPE.hidden,)
    assert float(ours @ theirs) >= 0.99999


def test_vectors_of_different_texts_differ(by_transformers: Embed):
    """Otherwise agreement on synthetic weights would prove nothing."""
    texts = [random_ids(17, NOMIC_SHAPE.vocab, seed) for seed in range(6)]
    vectors = np.stack([by_transformers(ids) for ids in texts])
    similarity = (vectors @ vectors.T)[np.triu_indices(len(texts), 1)]
    assert similarity.max() < 0.9


def test_the_order_of_tokens_matters(by_transformers: Embed):
    """Otherwise a missing rotation would go unseen."""
    ids = random_ids(17, NOMIC_SHAPE.vocab)
    turned = [ids[0], *reversed(ids[1:-1]), ids[-1]]
    assert float(by_transformers(ids) @ by_transformers(turned)) < 0.999


def test_eight_bit_weights_stay_near_float32(cache_dir: Path, by_transformers: Embed):
    """The synthetic weights quantize as well as trained ones do."""
    quantized = nomic_reference(cached_synthetic(cache_dir, quant="Q8_0"))
    for length in LENGTHS[:3]:
        ids = random_ids(length, NOMIC_SHAPE.vocab)
        assert float(quantized(ids) @ by_transformers(ids)) >= 0.9995


def test_bert_files_read_alike(cache_dir: Path):
    """The other architecture: positions learned, biases everywhere, GELU."""
    path = cached_synthetic(cache_dir, arch="bert", shape=SMALL_SHAPE)
    by_transformers, by_llama = bert_reference(path), llama_reference(path)
    for length in (2, 17, 300, SMALL_SHAPE.context):
        ids = random_ids(length, SMALL_SHAPE.vocab)
        assert float(by_transformers(ids) @ by_llama(ids)) >= 0.99999
