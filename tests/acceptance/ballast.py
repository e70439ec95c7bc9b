"""Memory that a server's group has to hold besides: what a neighbour in its container takes."""

import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from plimsoll.bench.comparison.limits import LimitedGroup


class Ballast:
    """Owns a file in memory, charged to a group, which only grows until it is removed."""

    def __init__(self, group: LimitedGroup) -> None:
        self.n_bytes = 0
        self._group = group
        self._file = Path(f"/dev/shm/plimsoll-{os.getpid()}")

    def grow(self, n_bytes: int) -> None:
        """Take so many bytes more."""
        self.n_bytes += n_bytes
        command = ["fallocate", "--length", str(self.n_bytes), str(self._file)]
        subprocess.run([*self._group.prefix, *command], check=True)

    def remove(self) -> None:
        """Give all of it back."""
        self._file.unlink(missing_ok=True)
        self.n_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()
