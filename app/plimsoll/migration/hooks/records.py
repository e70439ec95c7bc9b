"""When hooks are asked, what they answer, and what became of them: plain records."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, TypeAlias

Answered: TypeAlias = Literal["passed", "stopped", "failed"]
"""What became of a hook that was asked. stopped: it said no; failed: it gave no answer."""

Outcome: TypeAlias = Literal["under_way", Answered]

PLUGIN_FAILED = 3
"""Exit code of a plug-in that could not be loaded or raised: no answer, rather than a no."""


class Moment(Enum):
    """When a hook is asked. docs/migration.md has the table."""

    BEFORE = "before"
    DURING = "during"
    AFTER = "after"
    BEFORE_CUTOVER = "before-cutover"
    AFTER_CUTOVER = "after-cutover"


@dataclass(frozen=True)
class Answer:
    """What a hook says. stops: the run is to end, because of `reason`.

    figures: what it measured, for status and report.
    """

    stops: bool = False
    reason: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class HookOutcome:
    """What became of a hook in one run: its last answer there.

    attempt: how often it was begun there; 2 and more after a server that died. seconds: None while
    it is asked.
    """

    hook: str
    moment: Moment
    attempt: int
    outcome: Outcome
    reason: str
    figures: Mapping[str, Any]
    began_at: str
    seconds: float | None
