"""Which state may follow which; what docs/migration.md says is compared there."""

import pytest

from plimsoll.errors import MigrationStateError
from plimsoll.migration.states import ENDED, NOTES, TRANSITIONS, MigrationState, check_change

ALLOWED = [(before, after) for before, each in TRANSITIONS.items() for after in each]


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
    assert {MigrationState.PURGED, MigrationState.CANCELLED} == ENDED
