"""Where the pipeline's float32 bytes go."""

import os
from typing import Protocol

from plimsoll.errors import ModelLoadError
from plimsoll.files import is_disk_full

# Dirty pages count as memory in use until the disk has them.
FLUSH_BYTES = 16 << 20

_sync_data = getattr(os, "fdatasync", os.fsync)  # macOS has only the latter


class Sink(Protocol):
    """Called from one thread at a time."""

    def write_at(self, offset: int, data: memoryview) -> None:
        """Store `data` at `offset`. Raises OSError for what may be tried again."""

    def flush(self) -> None:
        """Make what was written durable and give its pages back."""


class NullSink:
    """For weights that already lie where they will be mapped."""

    def write_at(self, offset: int, data: memoryview) -> None:
        """Nothing to store."""

    def flush(self) -> None:
        """Nothing to flush."""


class FileSink:
    """Writes to an open file, flushing as it goes so that dirty pages never pile up."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._unflushed_bytes = 0

    def write_at(self, offset: int, data: memoryview) -> None:
        """Store `data` at `offset`, whole."""
        while data:
            written = os.pwrite(self._fd, data, offset)
            data, offset = data[written:], offset + written
            self._unflushed_bytes += written
        if self._unflushed_bytes >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Wait until the disk has the data, then drop the clean pages from the file cache.

        Raises ModelLoadError when the disk failed: which bytes were lost is not known, so
        writing some of them again would not do. OSError only when it is full.
        """
        try:
            _sync_data(self._fd)
        except OSError as error:
            if is_disk_full(error):
                raise
            raise ModelLoadError(
                f"the disk failed while weights were written: {error.strerror}"
            ) from error
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        self._unflushed_bytes = 0
