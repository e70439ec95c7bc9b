"""How good searches are while a collection moves between two real models: Cranfield, by nDCG@10."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from plimsoll import Embedder
from plimsoll.corpora import documents, vectors, versions
from plimsoll.corpora.database import FILE_NAME, Database
from plimsoll.corpora.parts import SearchPart, merged
from plimsoll.corpora.records import Document, Space, Version, VersionState
from plimsoll.corpora.vector_copies import VectorCopies
from plimsoll.migration.bridge_figures import fitted, neighbour_recalls, why_refused
from plimsoll.settings import Settings
from tests.evaluation_data import evaluation_file
from tests.models.test_builtin_quality import ndcg
from tests.public_collections import cranfield_documents, cranfield_queries

pytestmark = pytest.mark.oracles

MPNET, BUILTIN = "all-mpnet-base-v2", "all-MiniLM-L6-v2"
# As the data's own page has them.
ALONE = {MPNET: 0.4048, BUILTIN: 0.3891}
SEEDS = range(5)
# Of nDCG@10 in the midst of a move, below the lesser of both versions.
MOST_LOST = 0.002
# Documents that a bridge is fitted on; a run takes 699, half of them.
SAMPLES = (100, 200, 350, 699, 1000)


class Cranfield:
    """A collection, and the vectors of its documents and questions by both models."""

    def __init__(self, database: Database, by_model: dict[str, tuple[np.ndarray, np.ndarray]]):
        self.database = database
        self.copies = VectorCopies(database.path.parent)
        self.by_model = by_model
        self.questions = list(cranfield_queries().values())
        self.texts = [document for document in cranfield_documents() if document["text"]]
        with database.writing() as connection:
            self.collection = versions.create(connection, "cranfield", Space("v1:none", 1, "none"))
            given = [Document(each["id"], each["text"]) for each in self.texts]
            self.rows = documents.put(connection, self.collection.id, given)

    def version(self, model: str, share: float, seed: int) -> Version:
        """A version by a model that has vectors of a share of the documents, drawn at random."""
        found, _ = self.by_model[model]
        drawn = np.random.default_rng(seed).permutation(len(self.rows))
        chosen = sorted(drawn[: round(share * len(self.rows))].tolist())
        with self.database.writing() as connection:
            space = Space(f"v1:{model}", found.shape[1], model)
            made = versions.add(connection, self.collection.id, space, VersionState.BUILDING)
            vectors.put(connection, made.id, [self.rows[n] for n in chosen], found[chosen])
        return made

    def mean_ndcg(self, *parts: Version) -> float:
        """Of all questions, asked of these versions together."""
        gains = []
        for place, (_, relevant) in enumerate(self.questions):
            asked = [
                SearchPart(version, self.by_model[str(version.space.model)][1][place])
                for version in parts
            ]
            with self.database.reading() as connection:
                found = self.copies.search_parts(connection, asked, 10)
                rows = merged(connection, found, 10).rows.tolist()
                ids = documents.ids(connection, self.collection.id, rows)
            gains.append(ndcg(ids, relevant))
        return float(np.mean(gains))

    def mean_ndcg_by_size(self, old: str, new: str, share: float, seed: int) -> float:
        """Likewise where rank r among n of N documents is taken for rank r * N / n of the whole."""
        n_all = len(self.rows)
        drawn = np.random.default_rng(seed).permutation(n_all)
        done = drawn[: round(share * n_all)]
        gains = []
        for place, (_, relevant) in enumerate(self.questions):
            ranks = np.empty(n_all)
            for model, part in ((new, done), (old, np.setdiff1d(drawn, done))):
                stored, asked = self.by_model[model]
                order = part[np.argsort(-(stored[part] @ asked[place]), kind="stable")]
                ranks[order] = (np.arange(len(order)) + 1) * n_all / max(1, len(order))
            best = np.argsort(ranks, kind="stable")[:10]
            gains.append(ndcg([self.texts[n]["id"] for n in best], relevant))
        return float(np.mean(gains))

    def ndcg_of(self, stored: np.ndarray, asked: np.ndarray) -> float:
        """Mean nDCG@10 of the questions' vectors among the documents', as arrays."""
        nearest = np.argsort(-(asked @ stored.T), axis=1, kind="stable")[:, :10]
        return float(
            np.mean(
                [
                    ndcg([self.texts[place]["id"] for place in places], relevant)
                    for places, (_, relevant) in zip(nearest.tolist(), self.questions, strict=True)
                ]
            )
        )


def embedded(embedder: Embedder, texts: list[str], input_type: str) -> np.ndarray:
    """Vectors of texts, float32 (n, dimensions)."""
    found = list[np.ndarray | None]()
    for start in range(0, len(texts), 256):
        found += embedder.embed_batch(texts[start : start + 256], input_type).vectors
    return np.array(found)


@pytest.fixture(scope="module")
def cranfield(model_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cranfield]:
    stored = np.load(evaluation_file("cranfield-mpnet.npz"))
    by_id = dict(zip(stored["document_ids"].tolist(), stored["documents"], strict=True))
    texts = [document for document in cranfield_documents() if document["text"]]
    asked = dict(zip(stored["query_ids"].tolist(), stored["queries"], strict=True))
    theirs = (
        np.stack([by_id[each["id"]] for each in texts]),
        np.stack([asked[number] for number in cranfield_queries()]),
    )
    with Embedder(settings=Settings(cache_dir=model_cache)) as embedder:
        ours = (
            embedded(embedder, [each["text"] for each in texts], "search_document"),
            embedded(embedder, [text for text, _ in cranfield_queries().values()], "search_query"),
        )
    database = Database(tmp_path_factory.mktemp("cranfield") / FILE_NAME)
    found = Cranfield(database, {MPNET: theirs, BUILTIN: ours})
    yield found
    found.copies.close()
    database.close()


@pytest.mark.parametrize(("old", "new"), [(MPNET, BUILTIN), (BUILTIN, MPNET)])
def test_searches_are_about_as_good_all_the_way(cranfield: Cranfield, old: str, new: str):
    """Both ends are the versions themselves; in between little is lost to the merging."""
    whole = cranfield.version(old, 1, 0)
    figures = {}
    for share in (0, 0.25, 0.5, 0.75, 1):
        each = [cranfield.mean_ndcg(cranfield.version(new, share, seed), whole) for seed in SEEDS]
        figures[share] = float(np.mean(each))
    by_size = {
        share: np.mean([cranfield.mean_ndcg_by_size(old, new, share, seed) for seed in SEEDS])
        for share in (0.25, 0.5, 0.75)
    }
    told = ", ".join(f"{share:.0%}: {found:.4f}" for share, found in figures.items())
    beside = ", ".join(f"{share:.0%}: {found:.4f}" for share, found in by_size.items())
    print(f"{old} to {new}: {told}; by sizes of parts {beside}")

    assert figures[0] == pytest.approx(ALONE[old], abs=0.002)
    assert figures[1] == pytest.approx(ALONE[new], abs=0.002)
    for share in (0.25, 0.5, 0.75):
        assert min(ALONE.values()) - MOST_LOST <= figures[share] <= max(ALONE.values()) + MOST_LOST
        assert figures[share] > by_size[share]


def test_a_bridge_between_two_models_is_told_to_lose_what_it_loses(cranfield: Cranfield):
    """It is refused whatever the sample, and what is said of it is no more than is found.

    Found: recall@10 of bridged vectors among the documents that are not in the sample. Searched:
    by bridged vectors alone, and with the sample's real ones beside them, as a run has it.
    """
    old, _ = cranfield.by_model[MPNET]
    new, questions = cranfield.by_model[BUILTIN]
    for size in SAMPLES:
        told, real, alone, beside = list[float](), list[float](), list[float](), list[float]()
        for seed in SEEDS:
            drawn = np.random.default_rng(seed).permutation(len(old))
            sampled, others = np.sort(drawn[:size]), np.sort(drawn[size:])
            found, figures = fitted(old[sampled], new[sampled], len(old))
            bridged = found.map(old)
            assert why_refused(figures) is not None
            told.append(figures.retention)
            real.append(float(np.mean(neighbour_recalls(bridged[others], new[others]))))
            alone.append(cranfield.ndcg_of(bridged, questions))
            bridged[sampled] = new[sampled]
            beside.append(cranfield.ndcg_of(bridged, questions))
        print(
            f"{size} documents: retention {np.mean(told):.3f}, found {np.mean(real):.3f}, nDCG@10 "
            f"{np.mean(alone):.4f}, with the sample's own vectors {np.mean(beside):.4f}"
        )
        assert np.mean(told) < np.mean(real) + 0.02
        assert np.mean(alone) < max(ALONE.values())
