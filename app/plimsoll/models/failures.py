"""Close what an opening that has failed leaves."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Owner(Protocol):
    """Something over a map, such as a sidecar, or codes beside it."""

    def close(self) -> None:
        """Unmap; fails while views of the map are alive."""


@contextmanager
def closed_on_failure(*owners: Owner | None) -> Iterator[None]:
    """Close the owners where the block fails, once its frames have let go of their views."""
    try:
        yield
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        for owner in owners:
            if owner is not None:
                owner.close()
        raise
