"""Public collections with judged queries, put into a server and searched as a client does it."""

import gzip
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from fastapi.testclient import TestClient

from tests.evaluation_data import evaluation_file, json_lines, tsv_rows
from tests.models.test_builtin_quality import ndcg

JSON_LINES = {"content-type": "application/x-ndjson"}


def cranfield_documents() -> list[dict[str, Any]]:
    """1,400 abstracts, two of them empty."""
    return [
        {"id": document["_id"], "text": document["text"]}
        for document in json_lines("cranfield-docs.jsonl")
    ]


def cranfield_queries() -> dict[str, tuple[str, set[str]]]:
    """113 questions by id, each with the ids of its relevant documents."""
    relevant = _relevant("cranfield-qrels.tsv", "code")
    queries = json_lines("cranfield-queries.jsonl")
    return {query["_id"]: (query["text"], relevant[query["_id"]]) for query in queries}


def scifact_documents() -> list[dict[str, Any]]:
    """5,183 abstracts."""
    with gzip.open(evaluation_file("scifact-docs.jsonl.gz"), "rt", encoding="utf-8") as file:
        documents = [json.loads(line) for line in file]
    return [
        {"id": document["_id"], "text": f"{document['title']} {document['text']}"}
        for document in documents
    ]


def scifact_queries() -> dict[str, tuple[str, set[str]]]:
    """The claims that have a relevant abstract."""
    relevant = _relevant("scifact-qrels.tsv", "rel")
    queries = json_lines("scifact-queries.jsonl")
    return {
        query["_id"]: (query["text"], relevant[query["_id"]])
        for query in queries
        if query["_id"] in relevant
    }


def _relevant(file: str, grade: str) -> Mapping[str, set[str]]:
    relevant: dict[str, set[str]] = defaultdict(set)
    for row in tsv_rows(file):
        if int(row[grade]) > 0:
            relevant[row["query_id"]].add(row["doc_id"])
    return relevant


def put_documents(
    client: TestClient, collection: str, documents: Iterable[Mapping[str, Any]], space: str = ""
) -> dict[str, Any]:
    """Store documents; space: of the vectors that come along."""
    answer = client.post(
        f"{collection}/documents" + (f"?space={space}" if space else ""),
        content="\n".join(json.dumps(document) for document in documents),
        headers=JSON_LINES,
    )
    assert answer.status_code == 200, answer.text
    stored: dict[str, Any] = answer.json()
    return stored


def mean_ndcg(client: TestClient, collection: str, mode: str) -> float:
    """nDCG@10 over Cranfield's questions."""
    gains = []
    for text, relevant in cranfield_queries().values():
        body = {"query": text, "mode": mode, "top_k": 10}
        answer = client.post(f"{collection}/search", json=body).json()
        assert answer["mode"] == mode
        gains.append(ndcg([found["id"] for found in answer["results"]], relevant))
    return float(np.mean(gains))
