"""A migration as plain values: what routes answer, and what hooks are told."""

from typing import Any

from plimsoll.corpora.spaces import space_json
from plimsoll.migration.hooks.records import HookOutcome
from plimsoll.migration.shadow import Shadow
from plimsoll.migration.status import Counts, MigrationStatus


def migration_json(status: MigrationStatus) -> dict[str, Any]:
    """Everything about one, as docs/api.md and the OpenAPI document have it."""
    counts, migration = status.counts, status.counts.migration
    checkpoint = migration.checkpoint
    return {
        "id": migration.id,
        "collection": migration.collection,
        "state": status.state.value,
        "source": space_json(migration.source),
        "target": space_json(migration.target),
        "created_at": migration.created_at,
        "documents": counts.n_documents,
        "vectors": counts.n_vectors,
        "embedded": checkpoint.n_embedded,
        "skipped": checkpoint.n_skipped,
        "quarantined": counts.n_quarantined,
        "tokens": checkpoint.n_tokens,
        "rows_per_s": status.rows_per_s,
        "tokens_per_s": status.tokens_per_s,
        "eta_s": status.eta_s,
        "yielding": status.yielding,
        "yields": status.n_yields,
        "failure": status.failure,
        "rollback": counts.way_back,
        "without_old_vector": counts.n_without_old,
        "watch": _watch_json(status),
        "progressive": counts.is_progressive,
        "shadow": _shadow_json(counts.shadow),
        "bridge": _bridge_json(counts),
        "judged_queries": migration.n_judged,
        "judged_queries_sha256": migration.judged_sha256,
        "verdict": migration.verdict,
        "quarantine": [
            {
                "id": left.document_id,
                "reason": left.reason,
                "attempts": left.n_attempts,
                "has_old_vector": left.has_old_vector,
            }
            for left in counts.quarantine
        ],
        "named_hooks": [*counts.named_hooks],
        "hooks": [hook_json(outcome) for outcome in counts.hooks],
        "changes": [
            {
                "at": change.changed_at,
                "who": change.who,
                "before": None if change.before is None else change.before.value,
                "after": change.after.value,
                "why": change.why,
            }
            for change in counts.changes
        ],
    }


def hook_json(outcome: HookOutcome) -> dict[str, Any]:
    """What became of a hook."""
    return {
        "hook": outcome.hook,
        "moment": outcome.moment.value,
        "attempt": outcome.attempt,
        "outcome": outcome.outcome,
        "reason": outcome.reason,
        "figures": dict(outcome.figures),
        "at": outcome.began_at,
        "seconds": outcome.seconds,
    }


def _shadow_json(seen: Shadow | None) -> dict[str, Any] | None:
    if seen is None:
        return None
    return {
        "share": seen.share,
        "compared": seen.n_compared,
        "mean_overlap": seen.mean_overlap,
        "least_overlap": seen.least_overlap if seen.n_both else None,
        "rank_agreement": seen.mean_agreement,
        "old_mean_ms": seen.old_mean_ms,
        "new_mean_ms": seen.new_mean_ms,
        "old_empty": seen.n_old_empty,
        "new_empty": seen.n_new_empty,
        "failed": seen.n_failed,
        "last_failure": seen.last_failure,
    }


def _bridge_json(counts: Counts) -> dict[str, Any] | None:
    bridge = counts.bridge
    if bridge is None:
        return None
    return {
        "state": bridge.state.value,
        "forced": bridge.is_forced,
        "vectors": counts.n_bridged,
        "reason": bridge.reason,
        "figures": bridge.figures,
    }


def _watch_json(status: MigrationStatus) -> dict[str, Any] | None:
    if status.watch is None:
        return None
    seen, ends_in_s = status.watch
    return {
        "searches": seen.n_searches,
        "unanswered": seen.n_unanswered,
        "compared": seen.agreement.n,
        "agreement": seen.agreement.mean,
        "least_agreement": seen.agreement.least or None,
        "ends_in_s": ends_in_s,
        "stays": seen.stays,
    }
