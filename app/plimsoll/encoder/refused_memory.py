"""Name a refused allocation, NumPy's or a backend's, as what it is."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from plimsoll.errors import EncodeMemoryError


@contextmanager
def refused_memory_named(
    is_allocation_failure: Callable[[Exception], bool], what_for: str
) -> Iterator[None]:
    """Turn an error that says that memory was refused into EncodeMemoryError.

    is_allocation_failure: the backend's reading of its own errors. what_for: such as "to compute".
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, MemoryError) and not is_allocation_failure(error):
            raise
        _empty_frames(error)
        first_line = str(error).partition("\n")[0]
        raise EncodeMemoryError(f"no memory {what_for} with: {first_line}") from None


def _empty_frames(error: BaseException | None) -> None:
    """Let go of what an error's frames hold: the failed run's arrays, while memory is short."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
