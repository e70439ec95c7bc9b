"""A report of a migration as the server answers it, with something in every part."""

from typing import Any

HOSTILE = "<script>alert(1)</script>"


def report(**changed: Any) -> dict[str, Any]:
    """A migration that was stopped by a hook, went on and is ready. changed: of it."""
    checks = [
        check("complete", "passed", "398 of 400 documents have a new vector"),
        check("sound", "passed", "0 of 398 vectors are not finite"),
        check(
            "judged_queries",
            "failed",
            "nDCG@10 0.3891, loses 0.0157 against 0.4048",
            old_ndcg_at_10=0.4048,
            new_ndcg_at_10=0.3891,
            bm25_ndcg_at_10=0.3529,
            old_recall_at_10=0.5,
            new_recall_at_10=0.48,
            bm25_recall_at_10=0.41,
        ),
        check("neighbours", "undecided", "agree on 20 %", overlap_at_10=0.2),
        check("latency", "noted", "median 3 ms", old_median_ms=3.2, new_median_ms=5.5),
    ]
    migration = {
        "id": 7,
        "collection": HOSTILE,
        "state": "ready",
        "source": {"model": None, "fingerprint": "foreign:ada-002", "dimensions": 1536},
        "target": {"model": "all-MiniLM-L6-v2", "fingerprint": "v1:c2216a09", "dimensions": 384},
        "created_at": "2026-01-01T10:00:00Z",
        "documents": 400,
        "vectors": 398,
        "embedded": 398,
        "skipped": 1,
        "quarantined": 2,
        "tokens": 61234,
        "rows_per_s": None,
        "tokens_per_s": None,
        "eta_s": None,
        "yielding": None,
        "yields": 0,
        "failure": None,
        "rollback": "partial",
        "without_old_vector": 0,
        "watch": None,
        "progressive": False,
        "shadow": {
            "share": 0.1,
            "compared": 240,
            "mean_overlap": 0.834,
            "least_overlap": 0.2,
            "rank_agreement": 0.871,
            "old_mean_ms": 4.25,
            "new_mean_ms": 6.5,
            "old_empty": 1,
            "new_empty": 2,
            "failed": 3,
            "last_failure": "space_mismatch",
        },
        "bridge": {
            "state": "dropped",
            "forced": True,
            "vectors": 0,
            "reason": "its retention is 0.713 (0.700 to 0.726), and 0.95 is the least",
            "figures": {
                "documents": 200,
                "kind": "ridge",
                "strength": 0.1,
                "retention": 0.713,
                "standard_error": 0.0066,
                "least": 0.7,
                "most": 0.726,
                "cosine": 0.81,
                "fit_s": 0.7,
                "row_s": 2e-6,
                "queries": 40,
                "real_ndcg_at_10": 0.5121,
                "bridged_ndcg_at_10": 0.4712,
            },
        },
        "judged_queries": 113,
        "judged_queries_sha256": "ab" * 32,
        "verdict": {
            "decision": "no_go",
            "reasons": ["judged_queries: nDCG@10 0.3891, loses 0.0157 against 0.4048"],
            "warnings": ["rollback: what is written after cut-over goes into the new version"],
            "checks": checks,
            "judged_at": "2026-01-01T10:04:00Z",
            "seed": 7,
        },
        "quarantine": [
            {"id": "d1", "reason": "no token", "attempts": 3, "has_old_vector": True},
            {"id": HOSTILE, "reason": "too long", "attempts": 3, "has_old_vector": False},
        ],
        "named_hooks": ["window", "memory-monitor"],
        "hooks": [
            hook("window", "before", "stopped", HOSTILE),
            hook("window", "before", "passed", ""),
            hook("memory-monitor", "during", "passed", "38% of the budget at most"),
            hook("notify", "after", "failed", "the webhook answered 500"),
            {**hook("smoke", "after-cutover", "under_way", ""), "seconds": None},
        ],
        "changes": [
            change("2026-01-01T10:00:00Z", None, "planned", "smaller vectors"),
            change("2026-01-01T10:00:00Z", "planned", "running", ""),
            change("2026-01-01T10:00:01Z", "running", "failed", f"stopped: {HOSTILE}"),
            change("2026-01-01T10:01:00Z", "failed", "running", "opened"),
            change("2026-01-01T10:03:00Z", "running", "validating", "every document has one"),
            change("2026-01-01T10:04:00Z", "validating", "ready", "verdict: no_go"),
        ],
    }
    progress = [
        {"second": 1767261660 + 10 * number, "n_embedded": n, "n_tokens": 150 * n}
        for number, n in enumerate((10, 60, 130, 130, 130, 200, 290, 340, 398))
    ]
    return {"migration": migration | changed, "progress": progress}


def check(name: str, outcome: str, message: str, **figures: float) -> dict[str, Any]:
    """One question of the verdict."""
    return {
        "name": name,
        "outcome": outcome,
        "message": message,
        "figures": figures,
        "warns": False,
    }


def hook(name: str, moment: str, outcome: str, reason: str) -> dict[str, Any]:
    """What a hook answered."""
    return {
        "hook": name,
        "moment": moment,
        "attempt": 1,
        "outcome": outcome,
        "reason": reason,
        "figures": {},
        "at": "2026-01-01T10:00:00Z",
        "seconds": 0.5,
    }


def change(at: str, before: str | None, after: str, why: str) -> dict[str, Any]:
    """A change of state."""
    return {"at": at, "who": "request 3f", "before": before, "after": after, "why": why}
