"""What a verdict says of figures, at its limits and beyond them."""

import numpy as np
import pytest

from plimsoll.corpora.records import Space
from plimsoll.migration import checks
from plimsoll.migration.quality import LEAST_NDCG, outcome_of_drops
from plimsoll.migration.scans import VectorHealth
from plimsoll.migration.verdict import Check, Outcome, decide


@pytest.mark.parametrize(
    ("outcomes", "decision"),
    [
        (["passed", "noted"], "go"),
        (["passed", "undecided"], "inconclusive"),
        (["undecided", "failed", "passed"], "no_go"),
        ([], "go"),
    ],
)
def test_one_failure_is_enough_and_one_doubt_too(outcomes: list[Outcome], decision: str):
    found = decide([Check(f"c{n}", each, "told") for n, each in enumerate(outcomes)], "now", 7)
    assert found.decision == decision
    assert len(found.reasons) == sum(each in ("failed", "undecided") for each in outcomes)


def test_a_go_can_warn():
    """What gets worse is known before the cut-over."""
    found = decide([Check("judged", "passed", "loses a little", warns=True)], "now", 7)
    assert (found.decision, found.warnings) == ("go", ["judged: loses a little"])


@pytest.mark.parametrize(
    ("check", "outcome"),
    [
        (checks.complete(10, 0, 9, 1), "passed"),
        (checks.complete(10, 1, 9, 0), "failed"),
        (checks.complete(10, 0, 11, 0), "failed"),  # a vector of no document
        (checks.hashes(10, 0), "passed"),
        (checks.hashes(10, 1), "failed"),
        (checks.sound(VectorHealth(n_vectors=10)), "passed"),
        (checks.sound(VectorHealth(n_vectors=10, n_not_finite=1)), "failed"),
        (checks.sound(VectorHealth(n_vectors=10, n_not_unit=1)), "failed"),
        (checks.quarantine(100, 1, 1), "passed"),
        (checks.quarantine(100, 2, 2), "failed"),
        (checks.quarantine(100, 50, 0), "passed"),  # they had no vector before either
        (checks.embedded_again(2, 2, [0.0, 0.0]), "passed"),
        (checks.embedded_again(2, 1, [0.0, 2e-6]), "failed"),
        (checks.embedded_again(2, 1, [0.0]), "failed"),  # one gives no vector any more
        (checks.same_model([0.99, 1.0]), "passed"),
        (checks.same_model([0.9899, 1.0]), "noted"),  # a fine-tune perhaps
        (checks.same_model([]), "noted"),
    ],
    ids=lambda value: value.message if isinstance(value, Check) else value,
)
def test_a_check_fails_beyond_its_limit(check: Check, outcome: Outcome):
    assert check.outcome == outcome


def test_going_back_is_partial_where_nothing_embeds_into_the_old_space():
    assert not checks.rollback(Space("v1:a", 2, "small"), can_embed=True).warns
    partial = checks.rollback(Space.foreign("ada", 2), can_embed=False)
    assert (partial.outcome, partial.warns) == ("noted", True)
    assert "foreign:ada" in partial.message


def test_a_drop_decides_only_where_chance_does_not_explain_it():
    n = 40
    assert outcome_of_drops([0.02] * n, 0.5) == "passed"
    assert outcome_of_drops([0.03] * n, 0.5) == "failed"
    assert outcome_of_drops([-0.3] * n, 0.5) == "passed"  # it gains
    scattered = [0.5, -0.44] * (n // 2)  # 0.03 in the mean
    assert outcome_of_drops(scattered, 0.5) == "undecided"


def test_a_yardstick_that_finds_nothing_decides_nothing():
    """Beside it random weights lose nothing either."""
    assert outcome_of_drops([0.0] * 40, LEAST_NDCG) == "passed"
    assert outcome_of_drops([0.0] * 40, LEAST_NDCG / 2) == "undecided"


def test_a_vector_without_length_is_near_nothing():
    zero, one = np.zeros(2, np.float32), np.ones(2, np.float32)
    assert checks.cosine(zero, one) == 0
    assert checks.cosine(one, one) == pytest.approx(1)
