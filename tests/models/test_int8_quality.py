"""The built-in model in int8 against itself in float32, on texts that did not make the codes.

Prints the figures of docs/benchmarks.md, with pytest's -s.
"""

import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from plimsoll.composition.models import open_model
from plimsoll.encoder.model import EmbeddingModel
from plimsoll.machine.instructions import has_int8_products
from plimsoll.settings import Settings
from plimsoll.sidecar.loader import unreported
from tests.evaluation_data import json_lines, text_of, tsv_rows
from tests.models.test_builtin_quality import cranfield_ndcg, stsb_spearman

pytestmark = [
    pytest.mark.oracles,
    pytest.mark.skipif(not has_int8_products(), reason="this processor has no int8 products"),
]

RUN_TEXTS = 32
MOST_TOKENS = 256


@pytest.fixture(scope="module")
def models(model_cache: Path) -> Iterator[dict[str, EmbeddingModel]]:
    """Of one sidecar; the codes are made where the cache has none."""

    def opened(compute: str) -> EmbeddingModel:
        return open_model(Settings(cache_dir=model_cache, compute=compute), unreported)

    with closing(opened("float32")) as plain, closing(opened("int8")) as int8:
        yield {"float32": plain, "int8": int8}


def embed(model: EmbeddingModel, texts: list[str]) -> list[np.ndarray | None]:
    """A unit vector for each text, None where a text has no token."""
    ids = [text.ids[:MOST_TOKENS] for text in model.tokenize(texts, None)]
    order = sorted((i for i in range(len(ids)) if len(ids[i]) > 2), key=lambda i: len(ids[i]))
    vectors: list[np.ndarray | None] = [None] * len(ids)
    for start in range(0, len(order), RUN_TEXTS):
        run = order[start : start + RUN_TEXTS]
        rows = model.finish(model.encode([ids[i] for i in run]), model.traits.dimensions)
        for index, row in zip(run, rows, strict=True):
            vectors[index] = row
    return vectors


def test_the_worst_of_a_thousand_texts_is_near_float32(models: dict[str, EmbeddingModel]):
    """Of all kinds, and above all of those that nothing was calibrated for."""
    choose = random.Random(5)
    texts = [text_of(entry) for entry in json_lines("nasty-texts.jsonl")]
    texts += [row["sentence1"] for row in choose.sample(tsv_rows("stsb-dev.tsv"), 250)]
    texts += [row["text"] for row in choose.sample(tsv_rows("banking77-train.tsv"), 150)]
    for name, n_texts in (("load-mixed.jsonl", 150), ("cranfield-docs.jsonl", 60)):
        texts += [entry["text"] for entry in choose.sample(json_lines(name), n_texts)]
    texts += choose.sample([word for text in texts for word in text.split()], 60)

    found, expected = embed(models["int8"], texts), embed(models["float32"], texts)

    cosines = [a @ b for a, b in zip(found, expected, strict=True) if a is not None]
    print(f"{len(cosines)} texts: {np.mean(cosines):.5f} on average, {min(cosines):.5f} at worst")
    assert len(cosines) > 1000
    assert min(cosines) >= 0.999


def test_sentence_similarity_stays(models: dict[str, EmbeddingModel]):
    found, expected = (
        stsb_spearman(lambda texts, model=model: embed(model, texts))
        for model in (models["int8"], models["float32"])
    )

    print(f"STS-B dev: {found:.3f} in int8, {expected:.3f} in float32")
    assert found == pytest.approx(expected, abs=0.15)


def test_retrieval_loses_nothing(models: dict[str, EmbeddingModel]):
    """One-sided: of 113 questions a few near ties change places, measured to int8's advantage."""
    found, expected = (
        cranfield_ndcg(lambda texts, model=model: embed(model, texts))
        for model in (models["int8"], models["float32"])
    )

    print(f"Cranfield nDCG@10: {found:.4f} in int8, {expected:.4f} in float32")
    assert found >= expected - 0.002
