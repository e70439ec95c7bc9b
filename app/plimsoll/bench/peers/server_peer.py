"""A peer that is a server: a process with OpenAI's POST /v1/embeddings on a free port."""

import http.client
import socket
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import orjson

from plimsoll.bench.comparison.processes import MeasurementError, MemoryWatch, group_of
from plimsoll.bench.load.client import KEEP_ALIVE_S
from plimsoll.bench.peers.peer import FIRST_TEXT

PATH = "/v1/embeddings"
START_TIMEOUT_S = 180.0
REPLY_TIMEOUT_S = 1800.0  # one list of 2,000 on a slow peer
POLL_S = 0.02
SHOWN_CHARACTERS = 200


class ServerPeer:
    """Owns the process, and a connection for each thread that asks."""

    def __init__(self, command: Sequence[str], variables: Mapping[str, str], model: str) -> None:
        """Start, and return once it has embedded a text. Raises MeasurementError.

        command: takes `--port NUMBER` behind it. model: the name that requests carry.
        """
        self._model = model
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._port: int = probe.getsockname()[1]
        self._own = threading.local()
        self._connections: list[http.client.HTTPConnection] = []
        with ExitStack() as opened:
            # In a folder of its own, where no .env or plimsoll.toml is read.
            folder = opened.enter_context(tempfile.TemporaryDirectory())
            self._log = Path(folder) / "log"
            log = opened.enter_context(self._log.open("wb"))
            opened.callback(self._close_connections)  # once those who read from them have ended
            started = group_of(
                [*command, "--port", str(self._port)],
                env=dict(variables),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            self._process = opened.enter_context(started)
            self.watch = MemoryWatch(self._process.pid)
            opened.callback(self.watch.stop)
            self._wait_for_first_vector()
            self._opened = opened.pop_all()

    def embed(self, texts: Sequence[str]) -> None:
        """Send one request and read its reply, unparsed. Raises MeasurementError."""
        self._reply(texts)

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors float32 (texts, hidden). Raises MeasurementError."""
        rows = sorted(orjson.loads(self._reply(texts))["data"], key=lambda row: row["index"])
        found = np.array([row["embedding"] for row in rows], np.float32)
        unit: np.ndarray = found / np.linalg.norm(found, axis=1, keepdims=True)
        return unit

    def close(self) -> None:
        """End the server, and wait for it."""
        self._opened.close()

    def _close_connections(self) -> None:
        for connection in self._connections:
            connection.close()

    def _reply(self, texts: Sequence[str]) -> bytes:
        body = orjson.dumps({"model": self._model, "input": list(texts)})
        connection = self._connection
        try:
            connection.request("POST", PATH, body, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            found = reply.read()
            self._own.used_s = monotonic()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise MeasurementError(f"no reply: {error!r}; {self._last_words()}") from error
        if reply.status != 200:
            raise MeasurementError(
                f"status {reply.status}: {found[:SHOWN_CHARACTERS].decode(errors='replace')}"
            )
        return found

    @property
    def _connection(self) -> http.client.HTTPConnection:
        """The calling thread's own, kept alive between requests, and opened anew after a pause."""
        if not hasattr(self._own, "connection"):
            self._own.connection = http.client.HTTPConnection(
                "127.0.0.1", self._port, timeout=REPLY_TIMEOUT_S
            )
            self._connections.append(self._own.connection)
        found: http.client.HTTPConnection = self._own.connection
        if monotonic() - getattr(self._own, "used_s", 0.0) > KEEP_ALIVE_S:
            found.close()
        return found

    def _wait_for_first_vector(self) -> None:
        deadline_s = monotonic() + START_TIMEOUT_S
        while True:
            try:
                return self.embed([FIRST_TEXT])
            except MeasurementError:  # it does not listen, or still loads its model
                if self._process.poll() is not None:
                    raise MeasurementError(f"the server ended: {self._last_words()}") from None
                if monotonic() > deadline_s:
                    raise
            sleep(POLL_S)

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line for line in reversed(lines) if line.strip()), "")[:SHOWN_CHARACTERS]
