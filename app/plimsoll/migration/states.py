"""The states of a migration, and which may follow which. Pure.

docs/migration.md shows both tables; a test compares them.
"""

from collections.abc import Mapping
from enum import Enum

from plimsoll.errors import MigrationStateError


class MigrationState(Enum):
    """Where a migration stands."""

    PLANNED = "planned"
    RUNNING = "running"
    PAUSED = "paused"
    VALIDATING = "validating"
    READY = "ready"
    CUT_OVER = "cut_over"
    ROLLED_BACK = "rolled_back"
    PURGED = "purged"
    CANCELLED = "cancelled"
    FAILED = "failed"


NOTES: Mapping[MigrationState, str] = {
    MigrationState.PLANNED: "not begun; new and changed documents are embedded into both versions",
    MigrationState.RUNNING: "documents are embedded into the new version; searches read the old",
    MigrationState.PAUSED: "nothing is embedded but new and changed documents, into both versions",
    MigrationState.VALIDATING: "every document is embedded; the new version is being judged",
    MigrationState.READY: "a verdict is there; cut-over asks for `go`, or to be forced",
    MigrationState.CUT_OVER: "searches read the new version; the old one is kept in step",
    MigrationState.ROLLED_BACK: "searches read the old version again; the new one is kept in step",
    MigrationState.PURGED: "the version that searches do not read is dropped; there is no way back",
    MigrationState.CANCELLED: "the new version is dropped; the old one was never touched",
    MigrationState.FAILED: "stopped by an error, which is the reason; resuming goes on from there",
}

_S = MigrationState
TRANSITIONS: Mapping[MigrationState, Mapping[MigrationState, str]] = {
    _S.PLANNED: {
        _S.RUNNING: "started",
        _S.CANCELLED: "given up before it began",
    },
    _S.RUNNING: {
        _S.PAUSED: "asked to pause; the batch under way is stored or done again later",
        _S.VALIDATING: "no document is left without a vector",
        _S.FAILED: "an error that waiting does not mend",
        _S.CANCELLED: "given up",
    },
    _S.PAUSED: {
        _S.RUNNING: "resumed at its checkpoint",
        _S.CANCELLED: "given up",
    },
    _S.VALIDATING: {
        _S.READY: "judged",
        _S.PAUSED: "asked to pause; judged anew when resumed",
        _S.FAILED: "an error that waiting does not mend",
        _S.CANCELLED: "given up",
    },
    _S.READY: {
        _S.RUNNING: "asked to judge again: what lacks a new vector is embedded first",
        _S.CUT_OVER: "the pointer's change",
        _S.CANCELLED: "given up",
    },
    _S.CUT_OVER: {
        _S.ROLLED_BACK: "the pointer's change back",
        _S.PURGED: "the old version is dropped",
    },
    _S.ROLLED_BACK: {
        _S.RUNNING: "asked to judge again: what lacks a new vector is embedded first",
        _S.CUT_OVER: "the pointer's change once more",
        _S.PURGED: "the new version is dropped",
    },
    _S.FAILED: {
        _S.RUNNING: "resumed at its checkpoint",
        _S.CANCELLED: "given up",
    },
    _S.PURGED: {},
    _S.CANCELLED: {},
}

UNDER_WAY = frozenset({_S.RUNNING, _S.VALIDATING})
"""Those in which the server works, and goes on after a restart."""

BEFORE_CUTOVER = frozenset({_S.PLANNED, _S.RUNNING, _S.PAUSED, _S.VALIDATING, _S.READY, _S.FAILED})
"""Those in which searches have never read the new version alone."""

ENDED = frozenset(state for state, following in TRANSITIONS.items() if not following)
"""Those that another migration of the collection may follow."""


def check_change(migration: int, before: MigrationState, after: MigrationState) -> None:
    """Raise MigrationStateError where `after` may not follow `before`."""
    following = TRANSITIONS[before]
    if after not in following:
        may = " or ".join(state.value for state in following) or "nothing"
        raise MigrationStateError(
            f"migration {migration} is {before.value}; what may follow is {may}, not {after.value}"
        )
