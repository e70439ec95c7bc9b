"""What a fitted map is, and what it is said to be worth, on vectors whose relation is known."""

import numpy as np
import pytest

from plimsoll.corpora.vectors import unit
from plimsoll.migration.bridge_figures import (
    LEAST_DOCUMENTS,
    LEAST_RETENTION,
    MOST_DOCUMENTS,
    TooFewDocumentsError,
    fitted,
    neighbour_recalls,
    sample_depth,
    sample_size,
    why_refused,
)
from plimsoll.migration.bridge_map import BridgeMap, fit

N, OLD, NEW = 400, 48, 32


def points(n: int, size: int, seed: int = 7) -> np.ndarray:
    """Directions drawn at random, float32 (n, size), around a mean that is not zero."""
    chance = np.random.default_rng(seed)
    return unit((chance.standard_normal((n, size)) + chance.standard_normal(size)).astype("f4"))


def turn(size: int) -> np.ndarray:
    """An orthogonal matrix."""
    turned, _ = np.linalg.qr(np.random.default_rng(3).standard_normal((size, size)))
    return turned.astype(np.float32)


def test_a_turned_space_is_turned_back():
    """Vectors that were not among the pairs come out where they belong, to float32's rounding."""
    old, turned = points(N, OLD), turn(OLD)

    found = fit(old[: N // 2], old[: N // 2] @ turned)

    assert found.cosine > 1 - 1e-5
    assert found.map(old[N // 2 :]) == pytest.approx(old[N // 2 :] @ turned, abs=1e-3)


def test_an_affine_relation_between_spaces_of_two_sizes_is_found():
    """Ridge regression finds what no turning does: another scale in every direction."""
    chance = np.random.default_rng(11)
    old = points(4 * N, OLD)
    new = unit(old @ chance.standard_normal((OLD, NEW)).astype("f4") + 0.2)

    found, figures = fitted(old, new, len(old))

    assert (found.kind.name, figures.kind) == ("ridge", "ridge")
    assert figures.retention > 0.8
    assert found.map(old).shape == (4 * N, NEW)
    assert np.linalg.norm(found.map(old), axis=1) == pytest.approx(np.ones(4 * N), abs=1e-5)


def test_the_length_of_old_vectors_does_not_matter():
    """Foreign ones are stored as they come."""
    old = points(N, OLD)
    new = old @ turn(OLD)
    longer = old * np.random.default_rng(5).uniform(0.1, 50, (N, 1)).astype("f4")

    assert fit(longer, new).map(longer) == pytest.approx(fit(old, new).map(old), abs=1e-4)


def test_a_relation_is_worth_keeping_and_noise_is_refused():
    """What two spaces do not share cannot be fitted, however many pairs there are."""
    old = points(N, OLD)
    _, good = fitted(old, old @ turn(OLD), N)
    _, bad = fitted(old, points(N, NEW, seed=8), N)

    assert good.retention > LEAST_RETENTION
    assert why_refused(good) is None
    assert bad.retention < 0.2
    refusal = why_refused(bad)
    assert refusal is not None
    assert refusal.startswith(f"its retention is {bad.retention:.3f} (")


def test_a_space_that_hardly_differs_is_left_as_it_is():
    """Two quantizations of a model: fewer pairs than values tell nothing of most directions."""
    old = points(1000, 96)
    new = unit(old + 0.002 * points(1000, 96, seed=5))

    found, figures = fitted(old[:60], new[:60], 60)

    assert figures.kind == "shift"
    assert why_refused(figures) is None
    assert float(np.mean(np.sum(found.map(old) * new, axis=1))) > 0.9999


def test_a_sample_is_asked_for_as_few_neighbours_as_stand_for_ten_of_all():
    """Among fewer documents the ten nearest are told apart more easily than among all."""
    old = points(2000, OLD)
    new = unit(old @ turn(OLD) + 0.5 * points(2000, OLD, seed=5))
    found, figures = fitted(old[:200], new[:200], 2000)
    truth = float(np.mean(neighbour_recalls(found.map(old), new)))
    among_the_sample = float(np.mean(neighbour_recalls(found.held_out, new[:200])))

    assert figures.depth == 1
    assert abs(figures.retention - truth) < among_the_sample - truth
    assert [sample_depth(n, 1000) for n in (1, 500, 1000)] == [1, 5, 10]


def test_what_is_said_holds_for_documents_that_were_not_fitted():
    """A map of more numbers than pairs fits its own pairs; it is measured on others."""
    old, new = points(60, 200), points(60, NEW, seed=9)
    found, figures = fitted(old, new, len(old))
    cosine_of_fitted = float(np.mean(np.sum(found.map(old) * new, axis=1)))

    assert figures.cosine < cosine_of_fitted
    assert figures.retention < float(np.mean(neighbour_recalls(found.map(old), new)))


def test_recalls_count_shared_neighbours_without_the_document_itself():
    """Compared with sets that are found one by one."""
    new = points(40, NEW)
    bridged = unit(new + 0.3 * points(40, NEW, seed=4))

    def nearest(query: np.ndarray, among: np.ndarray, own: int) -> set[int]:
        order = [place for place in np.argsort(-(among @ query)).tolist() if place != own]
        return {*order[:10]}

    expected = [
        len(nearest(query, new, own) & nearest(query, bridged, own)) / 10
        for own, query in enumerate(new)
    ]
    assert neighbour_recalls(bridged, new).tolist() == expected
    assert neighbour_recalls(new, new).tolist() == [1.0] * 40


def test_judged_queries_are_asked_of_both():
    """The real vectors' nDCG is the most that bridged ones can keep."""
    old = points(N, OLD)
    new = old @ turn(OLD)
    relevant = [{place: 1.0} for place in range(20)]

    _, figures = fitted(old, new, N, new[:20], relevant)
    assert (figures.queries, figures.real_ndcg_at_10) == (20, 1.0)
    assert figures.bridged_ndcg_at_10 == pytest.approx(1.0, abs=0.05)
    _, without = fitted(old, new, N, new[:5], relevant[:5])  # too few to say anything
    assert (without.queries, without.real_ndcg_at_10) == (0, None)


def test_a_map_is_stored_as_it_is():
    old = points(N, OLD)
    kept = fit(old, points(N, NEW, seed=8)).map
    read = BridgeMap.of_bytes(kept.as_bytes(), OLD, NEW)

    assert np.array_equal(read(old), kept(old))
    assert read.digest == kept.digest
    assert read.digest != fit(old, points(N, NEW, seed=9)).map.digest


def test_the_sample_is_bounded_and_leaves_something_to_bridge():
    assert sample_size(10**7) == MOST_DOCUMENTS
    assert sample_size(300) == 150
    with pytest.raises(TooFewDocumentsError, match=f"{LEAST_DOCUMENTS} are the least"):
        fitted(points(LEAST_DOCUMENTS - 1, OLD), points(LEAST_DOCUMENTS - 1, NEW), N)


def test_old_vectors_that_are_all_the_same_are_no_error():
    """Nothing can be told by them: every document gets the new vectors' mean."""
    _, figures = fitted(np.ones((N, OLD), "f4"), points(N, NEW), N)
    assert figures.retention < 0.2
