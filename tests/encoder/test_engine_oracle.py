"""Plimsoll's engine against transformers and llama.cpp, on the same files.

Synthetic weights of nomic-embed-text-v1.5's exact shape: they prove the computation, not the
published model's quality.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from plimsoll.encoder.model import EmbeddingModel
from tests.oracles import bert_reference, llama_reference, nomic_reference
from tests.small_models import opened, small_settings
from tests.synthetic import CLS, MASK, NOMIC_SHAPE, SEP, SMALL_SHAPE, cached_synthetic

pytestmark = pytest.mark.oracles

QUANTS = ["F32", "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0"]
# Both kernels, packs, and on either side of every bound between them.
LENGTHS = [2, 3, 11, 12, 64, 65, 257, 700]
TEXTS = [
    "a",
    "SHOUTED IN UPPER CASE, with punctuation!?",
    "Crème brûlée, naïve façade, Ångström, señor, Dvořák",
    "東京は日本の首都です。 北京是中国的首都。",
    "🚢⚓ mixed with words 🌊 and 👩‍👩‍👧",
    "Москва слезам не верит; Ο ήλιος ανατέλλει",
    "the weather was fine " * 40,
]


@pytest.fixture(scope="module")
def cache_dir(request: pytest.FixtureRequest) -> Path:
    return request.config.cache.mkdir("synthetic")


@contextmanager
def model_of(path: Path, folder: Path) -> Iterator[EmbeddingModel]:
    with opened(small_settings(folder, path)) as model:
        yield model


def vectors(model: EmbeddingModel, texts: list[np.ndarray]) -> np.ndarray:
    """Unit vectors, all texts in one run."""
    return model.finish(model.encode(texts), model.traits.dimensions).astype(np.float64)


def random_ids(lengths: list[int], n_vocab: int) -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    return [np.array([CLS, *rng.integers(MASK + 1, n_vocab, n - 2), SEP]) for n in lengths]


def cosines(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    return (ours * theirs).sum(axis=1) / lengths


@pytest.mark.parametrize("quant", QUANTS)
def test_every_quantization_equals_transformers_on_the_same_weights(quant, cache_dir, tmp_path):
    """Expanding blocks and running the layers: one wrong scale, pairing or gate would show."""
    path = cached_synthetic(cache_dir, quant=quant)
    reference = nomic_reference(path)
    with model_of(path, tmp_path) as model:
        ids = [text.ids for text in model.tokenize(TEXTS, None)]
        ids += random_ids([*LENGTHS, *([2048] if quant in ("F32", "Q8_0") else [])], 30_000)
        ours = vectors(model, ids)
    theirs = np.stack([reference(one.tolist()) for one in ids]).astype(np.float64)
    assert cosines(ours, theirs).min() >= 0.99999


def test_eight_bit_files_agree_with_llama_cpp(cache_dir, tmp_path):
    """What a user gets from the same file elsewhere; llama.cpp rounds activations to 8 bits too."""
    path = cached_synthetic(cache_dir, quant="Q8_0")
    reference = llama_reference(path)
    ids = random_ids([2, 17, 300, 2048], NOMIC_SHAPE.vocab)
    with model_of(path, tmp_path) as model:
        ours = vectors(model, ids)
    theirs = np.stack([reference(one.tolist()) for one in ids]).astype(np.float64)
    assert cosines(ours, theirs).min() >= 0.9995


def test_texts_past_the_trained_length_equal_transformers_dynamic_rope(cache_dir, tmp_path):
    """The rotary base grows with the text's own length, and with no other text's."""
    shape = replace(NOMIC_SHAPE, n_layers=2)
    path = cached_synthetic(cache_dir, shape=shape)
    short = random_ids([40], shape.vocab)
    long = random_ids([2047, 2048, 2049, 4096, 8192], shape.vocab)
    # A short text after each long one: nothing of a long text's tables may stay behind.
    texts = [ids for text in long for ids in (text, *short)]
    with model_of(path, tmp_path) as model:
        ours = np.stack([vectors(model, [ids])[0] for ids in texts])
        together = vectors(model, [*long[3:], *short])
    theirs = np.stack([nomic_reference(path, scales=True)(ids.tolist()) for ids in texts]).astype(
        np.float64
    )
    assert cosines(ours, theirs).min() >= 0.99999
    assert cosines(together, ours[[6, 8, 9]]).min() >= 0.9999999


def test_bert_files_equal_transformers(cache_dir, tmp_path):
    """The other architecture: positions learned, biases everywhere, GELU."""
    path = cached_synthetic(cache_dir, arch="bert", shape=SMALL_SHAPE)
    reference = bert_reference(path)
    ids = random_ids([2, 11, 12, 64, 65, 257, SMALL_SHAPE.context], SMALL_SHAPE.vocab)
    with model_of(path, tmp_path) as model:
        ours = vectors(model, ids)
    theirs = np.stack([reference(one.tolist()) for one in ids]).astype(np.float64)
    assert cosines(ours, theirs).min() >= 0.99999
