"""What a hook is told, and a hook as it may be named."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from plimsoll.machine.memory import MemorySample
from plimsoll.migration.as_json import migration_json
from plimsoll.migration.hooks.records import Answer, Moment
from plimsoll.migration.pace import RunPace
from plimsoll.migration.status import MigrationStatus

Kind: TypeAlias = Literal["builtin", "command", "plugin"]

TIMEOUT_S = 60.0
INTERVAL_S = 30.0


@dataclass(frozen=True)
class Occasion:
    """What a hook is told.

    attempt: as HookOutcome has it. status: None where a hook is tried without a migration.
    pace: of the run under way, which a hook may change. step: of the memory ladder.
    is_breaker_open: nothing is embedded at all. baseline: the last answer of benchmark-baseline.
    """

    hook: str
    moment: Moment
    memory: MemorySample
    step: int
    is_breaker_open: bool
    attempt: int = 1
    status: MigrationStatus | None = None
    pace: RunPace | None = None
    baseline: Mapping[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """As commands, plug-ins and webhooks get it; docs/migration.md says each field."""
        return {
            "hook": self.hook,
            "moment": self.moment.value,
            "attempt": self.attempt,
            "migration": None if self.status is None else migration_json(self.status),
            "memory": {
                "used_bytes": self.memory.used_bytes,
                "budget_bytes": self.memory.budget_bytes,
                "used_ratio": self.memory.utilization_ratio,
                "step": self.step,
                "breaker_open": self.is_breaker_open,
            },
        }


Ask: TypeAlias = Callable[[Occasion], Awaitable[Answer]]
"""Asks a hook once. Raises HookError where it gives no answer."""


@dataclass(frozen=True)
class Hook:
    """A hook that may be named.

    make: called for each run, so that what a hook remembers is of that run. required: a run ends
    where it gives no answer; else that is only noted. interval_s: between two looks during a run.
    builtin: the name that Plimsoll brings it by. reads_status: it is told of the migration, whose
    documents are counted anew for that.
    """

    name: str
    kind: Kind
    told: str
    moments: frozenset[Moment]
    make: Callable[[], Ask]
    timeout_s: float = TIMEOUT_S
    interval_s: float = INTERVAL_S
    required: bool = True
    needs_migration: bool = False
    builtin: str | None = None
    reads_status: bool = True
