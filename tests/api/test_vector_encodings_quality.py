"""What search loses by quantized vectors: a published model on Cranfield, searched exactly.

The figures stand in docs/clients.md. The vectors are all-mpnet-base-v2's, of 768 values, made with
other software; see the README of the evaluation data.
"""

import re
from collections.abc import Mapping

import numpy as np
import pytest

from plimsoll.api.vector_encodings import SPAN, VectorEncoding, vector_field
from scripts.doc_tables import DOCS
from tests.evaluation_data import evaluation_file
from tests.models.test_builtin_quality import ndcg
from tests.public_collections import cranfield_queries

TOP = 10
CANDIDATES = 100  # that bits find, and whole numbers then put in order
RESCORED = f"`ubinary`, {CANDIDATES} rescored by `int8`"


@pytest.fixture(scope="module")
def cranfield() -> Mapping[str, np.ndarray]:
    with np.load(evaluation_file("cranfield-mpnet.npz")) as file:
        return dict(file)


def in_form(vectors: np.ndarray, form: VectorEncoding) -> np.ndarray:
    """What a database is given of unit vectors, float64 (texts, values); of bits, one each."""
    rows = np.stack([vector_field(row, form) for row in vectors])
    return (np.unpackbits(rows, axis=1) if form == "ubinary" else rows).astype(np.float64)


def scores_of(documents: np.ndarray, queries: np.ndarray) -> dict[str, np.ndarray]:
    """(queries, documents) by form, more is nearer, each as a database compares such vectors."""
    scores = {}
    for form in ("float", "float16", "int8", "uint8", "ubinary"):
        rows, asked = in_form(documents, form), in_form(queries, form)
        products = asked @ rows.T
        if form in ("uint8", "ubinary"):  # Euclid's distance, of bits Hamming's
            products = 2 * products - np.square(rows).sum(axis=1)
        scores[f"`{form}`"] = products
    scores[RESCORED] = scores["`int8`"].copy()
    far = np.argsort(-scores["`ubinary`"], axis=1, kind="stable")[:, CANDIDATES:]
    np.put_along_axis(scores[RESCORED], far, -np.inf, axis=1)
    return scores


def test_quantized_vectors_find_what_is_documented(cranfield: Mapping[str, np.ndarray]):
    """A user decides by these figures what to store."""
    judged = cranfield_queries()
    relevant = [judged[str(name)][1] for name in cranfield["query_ids"]]
    scores = scores_of(cranfield["documents"], cranfield["queries"])
    nearest = np.argsort(-scores["`float`"], axis=1, kind="stable")[:, :TOP]

    measured = {}
    for form, rows in scores.items():
        ranked = np.argsort(-rows, axis=1, kind="stable")[:, :TOP]
        shares = [len({*a} & {*b}) / TOP for a, b in zip(ranked, nearest, strict=True)]
        names = [[str(cranfield["document_ids"][place]) for place in row] for row in ranked]
        gains = [ndcg(row, found) for row, found in zip(names, relevant, strict=True)]
        measured[form] = f"{np.mean(shares):.3f} | {np.mean(gains):.3f}"

    page = (DOCS / "clients.md").read_text(encoding="utf-8").split("## Smaller vectors")[1]
    written = re.findall(r"^\| (`.+) \| [^|]+ \| (\d\.\d{3} \| \d\.\d{3}) \|$", page, re.MULTILINE)
    assert dict(written) == measured


def test_no_value_is_cut_off_by_the_scale_of_whole_numbers(cranfield: Mapping[str, np.ndarray]):
    """A value at the end of the range would be smaller than it is."""
    largest = max(np.abs(cranfield[side]).max() for side in ("documents", "queries"))
    assert largest * np.sqrt(768) < SPAN
