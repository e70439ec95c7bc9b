"""Search as a client has it, on public data: no worse than the same figures computed off line."""

import json
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import pytest
from fastapi.testclient import TestClient

from tests.evaluation_data import json_lines, tsv_rows
from tests.models.test_builtin_quality import ndcg

pytestmark = pytest.mark.oracles
CRANFIELD = "/collections/cranfield"


@pytest.fixture(scope="module")
def cranfield(client: TestClient) -> Iterator[TestClient]:
    """1,400 abstracts, two of them empty."""
    lines = [
        json.dumps({"id": document["_id"], "text": document["text"]})
        for document in json_lines("cranfield-docs.jsonl")
    ]
    client.put(CRANFIELD, json={})
    answer = client.post(
        f"{CRANFIELD}/documents",
        content="\n".join(lines),
        headers={"content-type": "application/x-ndjson"},
    ).json()
    assert (answer["added"], [error["id"] for error in answer["errors"]]) == (1398, ["471", "995"])
    yield client
    client.delete(CRANFIELD)


def mean_ndcg(client: TestClient, mode: str) -> float:
    """nDCG@10 over the 113 questions."""
    relevant: dict[str, set[str]] = defaultdict(set)
    for row in tsv_rows("cranfield-qrels.tsv"):
        if int(row["code"]) > 0:
            relevant[row["query_id"]].add(row["doc_id"])
    gains = []
    for query in json_lines("cranfield-queries.jsonl"):
        body = {"query": query["text"], "mode": mode, "top_k": 10}
        answer = client.post(f"{CRANFIELD}/search", json=body).json()
        assert answer["mode"] == mode
        gains.append(ndcg([found["id"] for found in answer["results"]], relevant[query["_id"]]))
    return float(np.mean(gains))


def test_dense_search_is_as_good_as_the_model(cranfield: TestClient):
    """The published weights' own figure, all vectors compared with each query."""
    assert mean_ndcg(cranfield, "dense") == pytest.approx(0.3891, abs=0.002)


def test_search_by_words_is_about_as_good_as_rank_bm25(cranfield: TestClient):
    """0.3526 with rank-bm25, whose constants and words differ a little from FTS5's."""
    assert mean_ndcg(cranfield, "bm25") >= 0.3526 - 0.02


def test_hybrid_search_is_better_than_either(cranfield: TestClient):
    figures = {mode: mean_ndcg(cranfield, mode) for mode in ("dense", "bm25", "hybrid")}
    assert figures["hybrid"] > max(figures["dense"], figures["bm25"]) + 0.02, figures
