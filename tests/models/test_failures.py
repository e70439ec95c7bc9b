"""What a failed opening leaves is closed."""

import mmap

import numpy as np
import pytest

from plimsoll.models.failures import closed_on_failure


def fail_with_a_view(owner: mmap.mmap) -> None:
    view = np.frombuffer(owner, np.uint8)
    raise ValueError(f"at byte {view[0]}")


def test_a_map_is_closed_though_the_failed_frames_had_views_of_it():
    """Half a gigabyte would stay mapped, and closing would hide the failure behind its own."""
    owner = mmap.mmap(-1, 4096)

    with pytest.raises(ValueError, match="at byte 0"), closed_on_failure(None, owner):
        fail_with_a_view(owner)

    assert owner.closed


def test_what_has_not_failed_stays_open():
    """The model closes it."""
    with mmap.mmap(-1, 4096) as owner:
        with closed_on_failure(owner):
            pass
        assert not owner.closed
