"""What a folder notes of its home: the space of the files, what was looked at, and who follows.

`home.json` has all three. The server that follows holds a lock beside it, which the kernel frees
where that server dies; the note says who it is, and outlives it.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from plimsoll.errors import CacheError, OutsideMismatchError, OutsideUnavailableError
from plimsoll.files import lock_of, locked
from plimsoll.links.files import manifest
from plimsoll.links.files.parts import disk_refusals
from plimsoll.links.server import ServerIdentity

FOLLOWED_RETRY_S = 15.0


class HomeNote:
    """Owns `home.json` of a folder, and the lock."""

    def __init__(self, folder: Path, server: ServerIdentity) -> None:
        """Read and lock nothing yet."""
        self._path = folder / manifest.HOME
        self._server = server
        self._lock = ExitStack()
        self._is_locked = False

    @property
    def space(self) -> str | None:
        """Fingerprint of the files' own space; None before it was noted."""
        found = self._read()
        return None if found is None else str(found["space"])

    @property
    def files(self) -> str | None:
        """Stamp of the files that were looked at last."""
        found = self._read()
        return None if found is None else str(found["files"])

    @property
    def is_anothers(self) -> bool:
        """Whether another server than this follows, or did so last."""
        before = self._read() or {}
        return str(before.get("server", self._server.id)) != self._server.id

    def note(self, space: str, files: str, *, takes_over: bool = False) -> None:
        """Note these. takes_over: and this server as the one that follows, where another was."""
        before = self._read() or {}
        server = {"server": self._server.id, "server_words": self._server.words}
        if self.is_anothers and not takes_over:
            server = {name: str(before.get(name)) for name in server}
        with disk_refusals(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            manifest.write(self._path, {"space": space, "files": files, **server})

    def lock(self) -> None:
        """Be the one server that follows, for as long as this is not closed.

        Raises OutsideUnavailableError where another is, and OutsideMismatchError where the disk
        keeps no locks.
        """
        if self._is_locked:
            return
        with disk_refusals(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.enter_context(locked(lock_of(self._path), wait=False))
            except BlockingIOError:
                raise self._refusal() from None
            except CacheError as error:
                raise OutsideMismatchError(
                    f"{self._path.parent} is on a disk that keeps no locks, so that another server "
                    "could write there too: name a folder on another"
                ) from error
        self._is_locked = True

    def close(self) -> None:
        """Let another follow."""
        self._lock.close()
        self._is_locked = False

    def _read(self) -> dict[str, Any] | None:
        return manifest.read(self._path)

    def _refusal(self) -> OutsideUnavailableError:
        who = (self._read() or {}).get("server_words", "another server")
        return OutsideUnavailableError(
            f"{self._path.parent} is followed by {who}, and a folder has one: end that server, or "
            "unlink it there",
            retry_after_s=FOLLOWED_RETRY_S,
        )
