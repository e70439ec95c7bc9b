"""Whether searches stay as good: by judged queries, by neighbours, and how long a query takes.

The old version answers the same questions beside the new one wherever its vectors of queries are to
be had: from a model here, or from the user.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from sqlite3 import Connection
from time import perf_counter
from typing import Any

import numpy as np

from plimsoll.corpora import documents, vectors
from plimsoll.corpora.database import Database
from plimsoll.corpora.patient_embedder import PatientEmbedder
from plimsoll.corpora.records import Version
from plimsoll.corpora.words import search_words
from plimsoll.migration.checks import GO_OVERLAP, NO_GO_OVERLAP
from plimsoll.migration.judged import JudgedQuery
from plimsoll.migration.measures import DEPTH, mean_overlap, ndcg, recall, standard_error
from plimsoll.migration.records import Migration
from plimsoll.migration.scans import nearest, rows_of_different_texts
from plimsoll.migration.verdict import Check, Outcome

# Fewer say nothing.
LEAST_QUERIES = 10
LEAST_DOCUMENTS = 50
# Of nDCG@10, absolute: less is lost between two good models.
MOST_DROP = 0.02
# Of the yardstick's nDCG@10: one that finds so little has nothing to lose, and every drop is small.
LEAST_NDCG = 5 * MOST_DROP
TIMED_QUERIES = 20
TIMED_CHARACTERS = 200  # a query is no whole document


class QualityJudge:
    """Compares two versions of one collection. thread: reads the file."""

    def __init__(self, database: Database, thread: Executor, old: Version, new: Version) -> None:
        self._database = database
        self._thread = thread
        self._old = old
        self._new = new

    async def judged(
        self,
        migration: Migration,
        queries: Sequence[JudgedQuery],
        old: PatientEmbedder | None,
        new: PatientEmbedder,
        *,
        decides: bool,
    ) -> Check:
        """nDCG@10 and recall@10 of the new version beside the old one's, or beside BM25's.

        Queries without a relevant document in the collection say nothing, and are left out.
        """
        n_given = len(queries)
        queries = await self._database.read(self._thread, _answerable(migration, queries))
        figures: dict[str, Any] = {
            "queries": len(queries), "unanswerable": n_given - len(queries), "most_drop": MOST_DROP
        }  # fmt: skip
        if len(queries) < LEAST_QUERIES:
            return Check(
                "judged_queries",
                "undecided" if decides else "noted",
                f"{len(queries)} of {n_given} queries have a relevant document in the collection: "
                f"fewer than {LEAST_QUERIES} say nothing",
                figures,
            )
        grades = [query.grades for query in queries]
        texts = [query.query for query in queries]
        new_vectors = await new.embed_queries(texts)
        figures["not_embedded"] = sum(vector is None for vector in new_vectors)
        ours = await self._found(self._new, new_vectors)
        words = await self._database.read(self._thread, _by_words, migration.collection_id, texts)
        old_vectors = [query.old_vector for query in queries]
        theirs: list[list[str]] | None = None
        if old is not None:
            theirs = await self._found(self._old, await old.embed_queries(texts))
        elif all(vector is not None for vector in old_vectors):
            theirs = await self._found(self._old, old_vectors)
        answers = {"new": ours, "bm25": words} | ({} if theirs is None else {"old": theirs})
        gains = {
            name: [ndcg(found, known) for found, known in zip(lists, grades, strict=True)]
            for name, lists in answers.items()
        }
        for name, lists in answers.items():
            figures[f"{name}_ndcg_at_10"] = float(np.mean(gains[name]))
            figures[f"{name}_recall_at_10"] = float(
                np.mean([recall(found, known) for found, known in zip(lists, grades, strict=True)])
            )
        yardstick = "bm25" if theirs is None else "old"
        drops = np.subtract(gains[yardstick], gains["new"]).tolist()
        figures["drop"], figures["standard_error"] = float(np.mean(drops)), standard_error(drops)
        outcome: Outcome = "noted"
        if decides:
            outcome = outcome_of_drops(drops, figures[f"{yardstick}_ndcg_at_10"])
        warns = outcome == "passed" and figures["drop"] > 0
        return Check("judged_queries", outcome, _told(figures, yardstick), figures, warns)

    async def neighbours(self, most: int, seed: int, *, decides: bool) -> Check:
        """How far both versions agree on the nearest documents of `most` ones, drawn at random.

        A text that stands in many documents counts once: its copies are each other's nearest under
        any model.
        """

        def look(connection: Connection) -> tuple[int, list[list[int]], list[list[int]]]:
            rows = rows_of_different_texts(connection, self._old, self._new)
            drawn = np.sort(np.random.default_rng(seed).permutation(rows)[:most])
            if len(rows) < LEAST_DOCUMENTS:
                return len(rows), [], []
            before = _neighbours(connection, self._old, drawn, rows)
            return len(rows), before, _neighbours(connection, self._new, drawn, rows)

        n_documents, before, after = await self._database.read(self._thread, look)
        figures: dict[str, Any] = {"documents": n_documents, "sampled": len(before)}
        if n_documents < LEAST_DOCUMENTS:
            return Check(
                "neighbours",
                "undecided" if decides else "noted",
                f"fewer than {LEAST_DOCUMENTS} documents of different texts have both vectors: "
                "their neighbours say nothing; give judged queries",
                figures,
            )
        overlap = mean_overlap(before, after, n_documents - 1)
        figures |= {
            "overlap_at_10": overlap, "go_from": GO_OVERLAP, "no_go_below": NO_GO_OVERLAP
        }  # fmt: skip
        outcome: Outcome = "noted"
        if decides:
            outcome = "passed" if overlap >= GO_OVERLAP else "undecided"
            if overlap < NO_GO_OVERLAP:
                outcome = "failed"
        message = f"old and new version agree on {overlap:z.0%} of the 10 nearest beyond chance"
        if outcome == "undecided":
            message += ": give judged queries, which say whether that is better or worse"
        return Check("neighbours", outcome, message, figures)

    async def latency(
        self, texts: Sequence[str], old: PatientEmbedder | None, new: PatientEmbedder
    ) -> Check:
        """How long one short query takes to embed, behind all else that the server does."""
        figures: dict[str, Any] = {"queries": len(texts)}
        for name, embedder in (("new", new), ("old", old)):
            if embedder is not None and texts:
                await embedder.embed(texts[:1], "search_query")  # the model may have to open
                figures[f"{name}_median_ms"] = await _median_ms(embedder, texts)
        told = ", ".join(
            f"{name} {figures[f'{name}_median_ms']:.1f} ms"
            for name in ("old", "new")
            if f"{name}_median_ms" in figures
        )
        return Check(
            "latency", "noted", f"median time of embedding a query: {told or '-'}", figures
        )

    async def _found(
        self, version: Version, queries: Sequence[np.ndarray | None]
    ) -> list[list[str]]:
        """Document ids, nearest first, for each query; of one without a vector, none."""
        given = [vector for vector in queries if vector is not None]

        def look(connection: Connection) -> list[list[str]]:
            found = nearest(connection, version, np.stack(given), DEPTH) if given else []
            return [documents.ids(connection, version.collection_id, rows) for rows in found]

        lists = iter(await self._database.read(self._thread, look))
        return [[] if vector is None else next(lists) for vector in queries]


def _by_words(connection: Connection, collection: int, texts: Sequence[str]) -> list[list[str]]:
    """Ids of the documents that BM25 finds for each text, best first."""
    found = (search_words(connection, collection, text, DEPTH) for text in texts)
    return [documents.ids(connection, collection, ranked.rows.tolist()) for ranked in found]


def _neighbours(
    connection: Connection, version: Version, drawn: np.ndarray, rows: np.ndarray
) -> list[list[int]]:
    """Neighbours, among `rows`, of documents drawn from them, which are not their own.

    drawn, rows: int64, ascending.
    """
    by_row = vectors.get(connection, version.id, drawn.tolist())
    queries = np.stack([by_row[row] for row in drawn.tolist()])
    found = nearest(connection, version, queries, DEPTH + 1, among=rows)
    return [
        [near for near in nearby if near != row][:DEPTH]
        for row, nearby in zip(drawn.tolist(), found, strict=True)
    ]


async def _median_ms(embedder: PatientEmbedder, texts: Sequence[str]) -> float:
    seconds = []
    for text in texts:
        began_s = perf_counter()
        await embedder.embed([text], "search_query")
        seconds.append(perf_counter() - began_s)
    return float(np.median(seconds)) * 1000


def _answerable(
    migration: Migration, queries: Sequence[JudgedQuery]
) -> Callable[[Connection], list[JudgedQuery]]:
    """Looks for the queries of which a relevant document is there."""

    def look(connection: Connection) -> list[JudgedQuery]:
        collection = migration.collection_id
        return [
            query for query in queries if documents.having(connection, collection, query.grades)
        ]

    return look


def outcome_of_drops(drops: Sequence[float], yardstick_ndcg: float) -> Outcome:
    """A yardstick that finds little decides nothing, and neither does a drop by chance."""
    if yardstick_ndcg < LEAST_NDCG:
        return "undecided"
    drop = float(np.mean(drops))
    if drop <= MOST_DROP:
        return "passed"
    return "failed" if drop > 2 * standard_error(drops) else "undecided"


def _told(figures: dict[str, Any], yardstick: str) -> str:
    change = "loses" if figures["drop"] > 0 else "gains"
    whose = "the old version" if yardstick == "old" else "BM25, the old version being left out"
    left_out = f", {figures['unanswerable']} left out" if figures["unanswerable"] else ""
    return (
        f"nDCG@10 {figures['new_ndcg_at_10']:.4f}, {change} {abs(figures['drop']):.4f} against "
        f"{figures[f'{yardstick}_ndcg_at_10']:.4f} of {whose}, "
        f"on {figures['queries']} queries{left_out}"
    )
