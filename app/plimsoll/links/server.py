"""Which server this is, for homes that only one may follow.

A server is known by its data folder, where its links' state is: a process that starts after another
has died there is the same server, and goes on at once. A copy of the folder is told by its process.
"""

import secrets
import socket
from pathlib import Path

from plimsoll.errors import StoreError
from plimsoll.files import publish, temporary_of

FILE_NAME = "server-id"


class ServerIdentity:
    """Owns the file with the server's id in its data folder, which is made where it is not there.

    process: of this process alone. words: for people who look for the server.
    """

    def __init__(self, folder: Path) -> None:
        """Read and write nothing yet."""
        self._path = folder / FILE_NAME
        self._id: str | None = None
        self.process = secrets.token_hex(8)
        self.words = (
            f"the server with the data folder {folder.absolute()} on {socket.gethostname()}"
        )

    @property
    def id(self) -> str:
        """The server's. Blocks. Raises StoreError where the folder cannot be used."""
        if self._id is None:
            try:
                self._id = self._read() or self._make()
            except OSError as error:
                raise StoreError(f"{self._path}: {error.strerror or error}") from error
        return self._id

    def _read(self) -> str | None:
        try:
            return self._path.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return None

    def _make(self) -> str:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = secrets.token_hex(8)
        temporary = temporary_of(self._path)
        temporary.write_text(f"{made}\n", encoding="ascii")
        publish(temporary, self._path)
        return made
