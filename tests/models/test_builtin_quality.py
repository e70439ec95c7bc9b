"""The built-in model through REST: published vectors and benchmark figures come out right.

Figures are those of the published weights in float32, computed with other software; see the
README of the evaluation data.
"""

import base64
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest
from fastapi.testclient import TestClient
from scipy.stats import spearmanr

from tests.evaluation_data import evaluation_file, json_lines, tsv_rows

EmbedTexts = Callable[[list[str]], list[np.ndarray | None]]

TEXTS_PER_REQUEST = 500
MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def embed(client: TestClient, texts: Sequence[str]) -> list[np.ndarray | None]:
    """A unit vector for each text, None where a text has no token."""
    vectors: list[np.ndarray | None] = []
    for start in range(0, len(texts), TEXTS_PER_REQUEST):
        body = {"input": texts[start : start + TEXTS_PER_REQUEST], "encoding_format": "base64"}
        response = client.post("/embed", json=body)
        assert response.status_code == 200, response.text
        vectors += [
            None if row is None else np.frombuffer(base64.b64decode(row), "<f4")
            for row in response.json()["embeddings"]
        ]
    return vectors


# --- published vectors ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def published() -> list[dict]:
    return json.loads(evaluation_file("canonical-vectors.json").read_text())[MODEL]


def one_minus_cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = np.float64(a), np.float64(b)
    return float(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_vectors_that_others_published_whole_come_out_again(
    client: TestClient, published: list[dict]
):
    """Of text-embeddings-inference, a cut one too, and of Ollama with its weights in float16."""
    whole = [entry for entry in published if "vector" in entry]
    assert len(whole) == 4

    for entry in whole:
        body = {"input": entry["text"]}
        if "dimensions" in entry:
            body["dimensions"] = entry["dimensions"]
        (vector,) = client.post("/embed", json=body).json()["embeddings"]
        assert one_minus_cosine(vector, entry["vector"]) < 1e-5, entry["text"]


def test_first_values_that_others_published_come_out_again(
    client: TestClient, published: list[dict]
):
    """Of fastembed: with their scale, since both are units."""
    parts = [entry for entry in published if "vector_first5" in entry]
    assert len(parts) == 1

    for entry in parts:
        (vector,) = client.post("/embed", json={"input": entry["text"]}).json()["embeddings"]
        np.testing.assert_allclose(vector[:5], entry["vector_first5"], rtol=0, atol=1e-3)


# --- benchmarks -----------------------------------------------------------------------------


def test_sentence_similarity_is_as_good_as_the_models(client: TestClient):
    """Rank correlation with 1,500 human judgements."""
    assert stsb_spearman(partial(embed, client)) == pytest.approx(86.716, abs=0.01)


def test_retrieval_is_as_good_as_the_models(client: TestClient):
    """The first ten of 1,400 abstracts for 113 questions. Two are empty and cannot be found."""
    assert cranfield_ndcg(partial(embed, client)) == pytest.approx(0.3891, abs=0.002)


def stsb_spearman(embed_texts: EmbedTexts) -> float:
    """Rank correlation with human judgements, times 100."""
    pairs = tsv_rows("stsb-dev.tsv")
    texts = sorted({pair[side] for pair in pairs for side in ("sentence1", "sentence2")})
    vectors = dict(zip(texts, embed_texts(texts), strict=True))
    cosines = [vectors[pair["sentence1"]] @ vectors[pair["sentence2"]] for pair in pairs]
    return float(100 * spearmanr(cosines, [float(pair["score"]) for pair in pairs]).statistic)


def cranfield_ndcg(embed_texts: EmbedTexts) -> float:
    """nDCG@10 over the questions of the Cranfield collection."""
    documents, queries = json_lines("cranfield-docs.jsonl"), json_lines("cranfield-queries.jsonl")
    relevant: dict[str, set[str]] = defaultdict(set)
    for row in tsv_rows("cranfield-qrels.tsv"):
        if int(row["code"]) > 0:
            relevant[row["query_id"]].add(row["doc_id"])

    found = embed_texts([document["text"] for document in documents])
    empty = [document["_id"] for document, row in zip(documents, found, strict=True) if row is None]
    assert empty == ["471", "995"]
    names = [
        document["_id"] for document, row in zip(documents, found, strict=True) if row is not None
    ]
    scores = (
        np.stack(embed_texts([query["text"] for query in queries]))
        @ np.stack([row for row in found if row is not None]).T
    )

    gains = []
    for query, row in zip(queries, scores, strict=True):
        ranked = [names[index] for index in np.argsort(-row, kind="stable")[:10]]
        gains.append(ndcg(ranked, relevant[query["_id"]]))
    return float(np.mean(gains))


def ndcg(ranked: Sequence[str], relevant: set[str]) -> float:
    """Normalised discounted cumulative gain of ranked names, each relevant or not."""
    discounts = 1 / np.log2(np.arange(2, len(ranked) + 2))
    gained = sum(d for d, name in zip(discounts, ranked, strict=True) if name in relevant)
    return float(gained / discounts[: len(relevant)].sum())
