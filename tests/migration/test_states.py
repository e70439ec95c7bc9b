"""Which state may follow which; what docs/migration.md says is compared there."""

import pytest

from plimsoll.errors import MigrationStateError
from plimsoll.migration.states import ENDED, NOTES, TRANSITIONS, MigrationState, check_change

# Written out: what may be dropped, or come back, must not change with a slip in the table.
FOLLOWING = {
    "planned": "running cancelled",
    "running": "paused validating failed cancelled",
    "paused": "running cancelled",
    "validating": "ready paused failed cancelled",
    "ready": "running cut_over cancelled",
    "cut_over": "rolled_back purged",
    "rolled_back": "running cut_over purged",
    "purged": "",
    "cancelled": "",
    "failed": "running cancelled",
}
ALLOWED = [
    (MigrationState(before), MigrationState(after))
    for before, each in FOLLOWING.items()
    for after in each.split()
]


@pytest.mark.parametrize(("before", "after"), ALLOWED)
def test_what_the_table_has_may_follow(before: MigrationState, after: MigrationState):
    check_change(1, before, after)


@pytest.mark.parametrize("before", MigrationState)
@pytest.mark.parametrize("after", MigrationState)
def test_nothing_else_may(before: MigrationState, after: MigrationState):
    """A purged version cannot come back, and what searches read is never dropped."""
    if (before, after) in ALLOWED:
        return
    with pytest.raises(MigrationStateError, match=f"migration 1 is {before.value}; "):
        check_change(1, before, after)


def test_every_state_has_a_note_and_is_reached():
    reached = {after for _, after in ALLOWED} | {MigrationState.PLANNED}

    assert set(MigrationState) == set(NOTES) == set(TRANSITIONS) == reached
    assert set(ALLOWED) == {(a, b) for a, each in TRANSITIONS.items() for b in each}
    assert {MigrationState.PURGED, MigrationState.CANCELLED} == ENDED
