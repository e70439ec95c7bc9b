"""A file of ours and the index that says what it holds: locked, checked, put aside when damaged.

The index is sealed as `index` has it and is written last, so that it makes the file count. An open
file holds a shared lock on it. Knows neither blobs nor codes.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from plimsoll import files
from plimsoll.errors import CacheCorruptError, CacheError, GGUFError
from plimsoll.sidecar.checked_file import CheckedFile
from plimsoll.sidecar.index import Place, unsealed


class Contents(Protocol):
    """What an index says of its file."""

    @property
    def n_bytes(self) -> int:
        """Size of the file."""

    @property
    def places(self) -> Iterable[Place]:
        """All that lies in it."""


ContentsType = TypeVar("ContentsType", bound=Contents)


class IndexedFile(Generic[ContentsType]):
    """Owns the open file, and the lock on its index that keeps it from being evicted."""

    def __init__(
        self,
        index: Path,
        data: Path,
        version: int,
        read: Callable[[dict[str, Any]], ContentsType],
        *,
        is_cheap: bool = True,
    ) -> None:
        """Open and map. read: makes the contents of what the sealed index holds.

        is_cheap: made again in a moment, so that what the disk cannot read counts as damaged.
        Raises CacheCorruptError for what is missing, or damaged or of an older format and then has
        been put aside; CacheError when the system refuses to open it or the format is newer.
        """
        self._index = index
        with ExitStack() as opened, _failures(data):
            self._mark = opened.enter_context(index.open("rb"))
            if not files.share(self._mark.fileno(), index):
                raise CacheCorruptError(f"{data} was removed while it was being opened")
            try:
                self.contents = unsealed(self._mark.read(), version, str(data), read)
                self.data = self._map(opened.enter_context(data.open("rb")), is_cheap)
            except (CacheCorruptError, FileNotFoundError):
                self.put_aside()
                raise
            self._opened = opened.pop_all()

    def damages(self) -> Iterator[tuple[str, int, int]]:
        """Read everything; names of places, and bytes of the file, that are not as written."""
        for place in self.contents.places:
            for start, stop in self.data.damaged_chunks(place.name):
                yield place.name, start, stop

    def put_aside(self) -> None:
        """Make the next load, in any process, make this file again; a newer one is left alone.

        Raises CacheCorruptError when the cache cannot be written to.
        """
        try:
            if files.is_at(self._mark.fileno(), self._index):
                self._index.unlink(missing_ok=True)
        except OSError as error:
            raise CacheCorruptError(
                f"the file of {self._index} is damaged and cannot be put aside "
                f"({error.strerror}): remove {self._index}"
            ) from error

    def close(self) -> None:
        """Unmap and unlock. Raises BufferError when arrays over the map are still alive."""
        self.data.close()
        self._opened.close()

    def _map(self, file: BufferedReader, is_cheap: bool) -> CheckedFile:
        found_bytes, n_bytes = os.fstat(file.fileno()).st_size, self.contents.n_bytes
        if found_bytes != n_bytes:
            raise CacheCorruptError(f"{file.name} has {found_bytes} bytes, not {n_bytes}")
        places = {place.name: place for place in self.contents.places}
        return CheckedFile(file, places, self.put_aside, is_cheap=is_cheap)


@contextmanager
def _failures(path: Path) -> Iterator[None]:
    """Tell a file that is not there whole from a system that refuses to open it."""
    try:
        yield
    except FileNotFoundError as error:
        raise CacheCorruptError(f"{path} is incomplete: {error.filename} is missing") from error
    except GGUFError as error:
        raise CacheCorruptError(f"{path} is damaged: {error}") from error
    except OSError as error:
        raise CacheError(f"{path} cannot be opened: {error}") from error
