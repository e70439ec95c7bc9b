"""Where the bytes of a GGUF file come from: a file on disk.

A source hands out bytes and says how many there are; it knows nothing of the format.
Ranges over HTTP are in http_source.py, so that serving never imports an HTTP client.
"""

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from plimsoll.errors import GGUFError, GGUFTruncatedError


class ByteSource(Protocol):
    """Bytes that can be read by offset."""

    @property
    def name(self) -> str:
        """Path or URL, for messages."""

    @property
    def size(self) -> int | None:
        """Bytes in all; None while it is not known."""

    def read_at(self, offset: int, n_bytes: int) -> bytes:
        """Return exactly `n_bytes`, or raise GGUFTruncatedError.

        A count that the source cannot have is refused before memory is taken for it.
        Raises GGUFError when the source fails.
        """


@dataclass(frozen=True)
class SourceIdentity:
    """Tells one state of one file from another, as far as the file system knows."""

    size: int
    mtime_ns: int
    inode: int
    device: int


class FileSource:
    """A regular file, read with pread: never mapped.

    A mapped file that its owner truncates kills the process with SIGBUS; a read from it
    only comes up short. Owns its descriptor; reads may run in several threads at once.
    """

    def __init__(self, file: Path | str | int) -> None:
        """Open a path, or duplicate a descriptor that stays the caller's own.

        Raises OSError when it cannot be opened, GGUFError when it is not a regular file.
        """
        if isinstance(file, int):
            self.name = f"descriptor {file}"
            self._fd = os.dup(file)
        else:
            self.name = str(file)
            # A FIFO would block the open until it has a writer; a regular file never does.
            self._fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise GGUFError(f"{self.name} is not a regular file", offset=0)
        self.size: int | None = status.st_size

    def read_at(self, offset: int, n_bytes: int) -> bytes:
        """Return exactly `n_bytes`; see ByteSource."""
        self._check_range(offset, n_bytes)
        buffer = bytearray(n_bytes)
        self.readinto_at(offset, memoryview(buffer))
        return bytes(buffer)

    def readinto_at(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` (contiguous bytes) from `offset` on.

        Raises GGUFTruncatedError when the file ends first, GGUFError when reading fails.
        """
        self._check_open()
        filled = 0
        while filled < len(buffer):
            try:
                n_read = os.preadv(self._fd, [buffer[filled:]], offset + filled)
            except OSError as error:
                raise GGUFError(
                    f"{self.name} cannot be read: {error.strerror}", offset=offset + filled
                ) from error
            if n_read == 0:
                raise _truncated(self.name, offset, len(buffer), offset + filled)
            filled += n_read

    def identity(self) -> SourceIdentity:
        """Ask the file system anew, so that a change since the last call shows."""
        self._check_open()
        status = os.fstat(self._fd)
        return SourceIdentity(status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev)

    def close(self) -> None:
        """Give the descriptor back; harmless when done twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._fd < 0:
            raise ValueError(f"{self.name} is closed")

    def _check_range(self, offset: int, n_bytes: int) -> None:
        size = self.identity().size
        check_not_negative(offset, n_bytes)
        if offset + n_bytes > size:
            raise _truncated(self.name, offset, n_bytes, size)


def check_not_negative(offset: int, n_bytes: int) -> None:
    """Raise ValueError for a range that no source can have."""
    if offset < 0 or n_bytes < 0:
        raise ValueError(f"no bytes {offset} to {offset + n_bytes}: negative offset or count")


def _truncated(name: str, offset: int, n_bytes: int, end: int) -> GGUFTruncatedError:
    return GGUFTruncatedError(
        f"{name} ends at byte {end}, but {n_bytes} bytes were to be read from byte {offset} on",
        offset=min(offset, end),
    )
