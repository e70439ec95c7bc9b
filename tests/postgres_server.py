"""A real PostgreSQL with pgvector, from PyPI's pgserver: started, restarted, ended.

PostgreSQL does not run as root: there it runs as `nobody`, from a copy that this user may read.
"""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import psycopg
from psycopg import sql

DEADLINE_S = 60.0
PASSWORD = "s3cret-pass"
# For tests: nothing outlives them, and a test waits for no disk.
FAST = ("-c", "fsync=off", "-c", "shared_buffers=16MB", "-c", "max_connections=20")


class PostgresServer:
    """Owns a server's process and its folder."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="plimsoll-postgres-"))
        self._user: dict[str, Any] = {}
        package = _package()
        if os.geteuid() == 0:
            for part in (package / "pginstall", package.with_name("pgserver.libs")):
                shutil.copytree(part, self._folder / part.relative_to(package.parent))
            package = self._folder / package.name
            shutil.chown(self._folder, "nobody")
            self._user = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        self._bin = package / "pginstall" / "bin"
        self._data = self._folder / "data"
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._make()
        self.start()

    def url(self, password: str = PASSWORD) -> str:
        """Its connection string."""
        return f"postgresql://captain:{password}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    self._bin / "postgres", "-D", self._data, "-p", str(self.port),
                    "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", *FAST,
                ],
                stdout=log, stderr=log, cwd=self._folder, **self._user,
            )  # fmt: skip
        deadline = monotonic() + DEADLINE_S
        while True:
            with suppress(psycopg.OperationalError):
                psycopg.connect(self.url(), connect_timeout=5).close()
                return
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert monotonic() < deadline, "the server does not answer"
            sleep(0.05)

    def stop(self) -> None:
        """End it at once, with every connection, as `kill -9` would all of its processes."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(DEADLINE_S)

    def close(self) -> None:
        """End it, and take its folder away."""
        self.stop()
        shutil.rmtree(self._folder)

    def cleaned(self) -> str:
        """Take away all that tests have made, and have pgvector; returns the connection string."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            found = connection.execute(
                "SELECT nspname FROM pg_namespace "
                "WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'"
            )
            for (name,) in found.fetchall():
                connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(name)))
            connection.execute("CREATE SCHEMA public")
            connection.execute("GRANT USAGE ON SCHEMA public TO PUBLIC")  # as a new database has it
            connection.execute("CREATE EXTENSION vector SCHEMA public")
        return self.url()

    def _make(self) -> None:
        password = self._folder / "password"
        password.write_text(PASSWORD)
        if self._user:
            shutil.chown(password, "nobody")
        subprocess.run(
            [
                self._bin / "initdb", "-D", self._data, "-U", "captain", "-A", "scram-sha-256",
                f"--pwfile={password}", "-E", "UTF8", "--locale=C", "--no-sync",
            ],
            check=True, capture_output=True, cwd=self._folder, **self._user,
        )  # fmt: skip


def is_installed() -> bool:
    """Whether there is a PostgreSQL for this Python."""
    return importlib.util.find_spec("pgserver") is not None


def _package() -> Path:
    """The folder of pgserver, which is not imported: that would make a folder and warn."""
    found = importlib.util.find_spec("pgserver")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
