"""BM25 sparse vectors equal fastembed's own; ranking is as good as rank_bm25's published figure."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plimsoll.retrieval.bm25 import BM25Encoder, SparseVector
from plimsoll.retrieval.ranking import rank_documents
from plimsoll.retrieval.stop_words import ENGLISH_STOP_WORDS
from tests.evaluation_data import json_lines, text_of, tsv_rows
from tests.models.test_builtin_quality import ndcg

pytestmark = pytest.mark.oracles

ODD_TEXTS = [
    "",
    "_ __ _ship_ the_sea",
    "İstanbul İİ xİ" + "y" * 39 + "İ" + "y" * 40 + "İΣ",
    "ΟΔΥΣΣΕΥΣ ΟΔΥΣΣΕΥΣ. ΑΣ\u0301 Σ ʰΣ ⒶΣ",
    "x" * 40 + " " + "y" * 41 + " " + "z" * 100_000,
    "autostart izmn izmn append ehop append",
    "don't won't SHOULDN'T I'm it's",
    "a\u2028b\x1cc\u00add\u200be",
]


@pytest.fixture(scope="module")
def fastembed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The original, with our stop words in the place of the file that it would download."""
    module = pytest.importorskip("fastembed.sparse.bm25", reason="fastembed is the oracle")
    folder = tmp_path_factory.mktemp("fastembed")
    (folder / "english.txt").write_text("\n".join(sorted(ENGLISH_STOP_WORDS)), encoding="utf-8")
    model = module.Bm25("Qdrant/bm25", specific_model_path=str(folder), cache_dir=str(folder))
    assert model.stopwords == ENGLISH_STOP_WORDS
    return model


def nasty_texts() -> list[str]:
    return [text_of(entry) for entry in json_lines("nasty-texts.jsonl")]


def load_texts() -> list[str]:
    return [text_of(entry) for entry in json_lines("load-mixed.jsonl")[:300]]


def abstracts() -> list[str]:
    return [document["text"] for document in json_lines("cranfield-docs.jsonl")[:300]]


def all_abstracts_in_one_text() -> list[str]:
    """About a hundred pieces."""
    return ["\n".join(document["text"] for document in json_lines("cranfield-docs.jsonl"))]


def odd_texts() -> list[str]:
    return ODD_TEXTS


@pytest.mark.parametrize(
    "texts", [nasty_texts, load_texts, abstracts, all_abstracts_in_one_text, odd_texts]
)
def test_every_text_has_the_vectors_of_the_original(
    data_dir: Path, fastembed: Any, texts: Callable[[], list[str]]
):
    """They go into an index beside vectors that fastembed made, and are found by its queries."""
    given, encoder = texts(), BM25Encoder()

    for ours, theirs in (
        (encoder.encode_documents(given), list(fastembed.embed(given))),
        (encoder.encode_queries(given), list(fastembed.query_embed(given))),
    ):
        different = [
            text[:80]
            for text, vector, original in zip(given, ours, theirs, strict=True)
            if not same(vector, original.as_dict())
        ]
        assert different == []


def same(vector: SparseVector, original: dict[int, float]) -> bool:
    found = dict(zip(vector.indices.tolist(), vector.values.tolist(), strict=True))
    return found.keys() == original.keys() and all(
        abs(value - original[index]) <= 1e-6 for index, value in found.items()
    )


def test_ranking_is_as_good_as_published(data_dir: Path):
    """The first ten of 1,400 abstracts for 113 questions, half a minute."""
    documents, queries = json_lines("cranfield-docs.jsonl"), json_lines("cranfield-queries.jsonl")
    relevant: dict[str, set[str]] = defaultdict(set)
    for row in tsv_rows("cranfield-qrels.tsv"):
        if int(row["code"]) > 0:
            relevant[row["query_id"]].add(row["doc_id"])
    texts = [document["text"] for document in documents]

    gains = []
    for query in queries:
        best = np.argsort(-rank_documents(query["text"], texts), kind="stable")[:10]
        gains.append(ndcg([documents[index]["_id"] for index in best], relevant[query["_id"]]))

    assert np.mean(gains) == pytest.approx(0.3526, abs=0.002)
