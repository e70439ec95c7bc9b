"""Search as a client has it, on public data: no worse than the same figures computed off line."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from tests.public_collections import cranfield_documents, mean_ndcg, put_documents

pytestmark = pytest.mark.oracles
CRANFIELD = "/collections/cranfield"


@pytest.fixture(scope="module")
def cranfield(client: TestClient) -> Iterator[TestClient]:
    """1,400 abstracts, two of them empty."""
    client.put(CRANFIELD, json={})
    answer = put_documents(client, CRANFIELD, cranfield_documents())
    assert (answer["added"], [error["id"] for error in answer["errors"]]) == (1398, ["471", "995"])
    yield client
    client.delete(CRANFIELD)


def test_dense_search_is_as_good_as_the_model(cranfield: TestClient):
    """The published weights' own figure, all vectors compared with each query."""
    assert mean_ndcg(cranfield, CRANFIELD, "dense") == pytest.approx(0.3891, abs=0.002)


def test_search_by_words_is_about_as_good_as_rank_bm25(cranfield: TestClient):
    """0.3526 with rank-bm25, whose constants and words differ a little from FTS5's."""
    assert mean_ndcg(cranfield, CRANFIELD, "bm25") >= 0.3526 - 0.02


def test_hybrid_search_is_better_than_either(cranfield: TestClient):
    figures = {mode: mean_ndcg(cranfield, CRANFIELD, mode) for mode in ("dense", "bm25", "hybrid")}
    assert figures["hybrid"] > max(figures["dense"], figures["bm25"]) + 0.02, figures
