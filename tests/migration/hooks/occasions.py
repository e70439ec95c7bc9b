"""Occasions without a server."""

from dataclasses import replace
from typing import Any

from plimsoll.corpora.records import Space
from plimsoll.machine.memory import MemorySample
from plimsoll.migration.hooks.occasion import Occasion
from plimsoll.migration.hooks.records import Moment
from plimsoll.migration.records import Checkpoint, Migration
from plimsoll.migration.states import MigrationState
from plimsoll.migration.status import Counts, MigrationStatus

MIB = 1 << 20
BUDGET_BYTES = 1000 * MIB


def migration(**changed: Any) -> Migration:
    """One that is judged, or whatever is changed."""
    return replace(
        Migration(
            id=1,
            collection_id=1,
            collection="ships",
            source_version=1,
            source=Space("old-space", 8, "old"),
            target_version=2,
            target=Space("new-space", 8, "new"),
            state=MigrationState.VALIDATING,
            checkpoint=Checkpoint(),
            n_judged=0,
            judged_sha256="",
            verdict=None,
            created_at="2026-01-01T00:00:00Z",
        ),
        **changed,
    )


def occasion(used_ratio: float = 0.5, step: int = 0, **changed: Any) -> Occasion:
    """With so much of the budget in use."""
    used_bytes = round(used_ratio * BUDGET_BYTES)
    return replace(
        Occasion(
            hook="it",
            moment=Moment.BEFORE,
            memory=MemorySample(used_bytes, used_bytes, used_bytes, BUDGET_BYTES, "process"),
            step=step,
            is_breaker_open=False,
        ),
        **changed,
    )


def judged(checks: dict[str, dict[str, Any]], **changed: Any) -> Occasion:
    """After a run whose verdict has these figures by check."""
    verdict = {
        "decision": "go",
        "checks": [{"name": name, "figures": figures} for name, figures in checks.items()],
    }
    status = MigrationStatus(Counts(migration(verdict=verdict), []), MigrationState.VALIDATING)
    return occasion(moment=Moment.AFTER, status=status, **changed)
