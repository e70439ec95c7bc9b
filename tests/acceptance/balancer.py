"""HAProxy over the project's own configuration, and a name server that tells it the replicas."""

import os
import re
import socket
import socketserver
import struct
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from time import monotonic, sleep

import httpx
import pytest

from tests.acceptance.containers import free_port
from tests.running_server import DEADLINE_S, ROOT

CONFIG = ROOT / "docs/haproxy/haproxy.cfg"
REPLICAS_NAME = "replicas.test"
OWNER_NAME = "owner.test"
# Of a DNS message (RFC 1035, 4.1): an answer to a question, the name behind it at byte 12.
ANSWER_FLAGS, NO_SUCH_NAME = 0x8180, 0x8183
POINTER_TO_NAME, TYPE_A, CLASS_IN, TTL_S = 0xC00C, 1, 1, 1


def haproxy() -> str:
    """The command; skips where there is none."""
    found = subprocess.run([ROOT / "scripts/haproxy"], capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip(f"no HAProxy: {found.stderr.strip() or 'scripts/haproxy failed'}")
    return found.stdout.strip()


def out_after_s() -> float:
    """Seconds after which HAProxy has left out a replica that is not ready, as configured."""
    found = set(re.findall(r"inter (\d+)s fastinter (\d+)ms fall (\d+)", CONFIG.read_text("utf-8")))
    [(inter_s, fast_ms, falls)] = found
    return int(inter_s) + (int(falls) - 1) * int(fast_ms) / 1000


class NameServer:
    """Answers questions for the addresses of names. Owns a socket and a thread."""

    def __init__(self, addresses: dict[str, Sequence[str]]) -> None:
        class Answering(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                question, connection = self.request
                connection.sendto(_answer(question, addresses), self.client_address)

        self._server = socketserver.UDPServer(("127.0.0.1", 0), Answering)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _answer(question: bytes, addresses: dict[str, Sequence[str]]) -> bytes:
    """A DNS message with the addresses of the name that is asked for."""
    labels, at = [], 12
    while length := question[at]:
        labels.append(question[at + 1 : at + 1 + length].decode().lower())
        at += 1 + length
    end = at + 5  # the empty label, the type, the class
    (kind,) = struct.unpack(">H", question[at + 1 : at + 3])
    name = ".".join(labels)
    found = addresses.get(name, ()) if kind == TYPE_A else ()
    flags = ANSWER_FLAGS if name in addresses else NO_SUCH_NAME
    header = question[:2] + struct.pack(">HHHHH", flags, 1, len(found), 0, 0)
    records = (
        struct.pack(">HHHIH", POINTER_TO_NAME, TYPE_A, CLASS_IN, TTL_S, 4)
        + socket.inet_aton(address)
        for address in found
    )
    return header + question[12:end] + b"".join(records)


class Balancer:
    """HAProxy before replicas that listen on one port of several addresses.

    Owns its process, its log and the name server.
    """

    def __init__(
        self, command: str, folder: Path, port: int, replicas: Sequence[str], owner: str
    ) -> None:
        """Start it; returns before any replica is known. port: of replicas and owner."""
        self._names = NameServer({REPLICAS_NAME: replicas, OWNER_NAME: [owner]})
        written = CONFIG.read_text("utf-8")
        assert written.count("parse-resolv-conf") == 1
        config = folder / CONFIG.name
        config.write_text(
            written.replace("parse-resolv-conf", f"nameserver test 127.0.0.1:{self._names.port}"),
            "utf-8",
        )
        clients, operations = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
        self.url, self._operations = f"http://{clients}", f"http://{operations}"
        self._log = folder / "haproxy.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [command, "-db", "-f", config],
                env=os.environ
                | {
                    "REPLICAS": f"{REPLICAS_NAME}:{port}",
                    "OWNER": f"{OWNER_NAME}:{port}",
                    "BIND": clients,
                    "OPERATIONS_BIND": operations,
                },
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def log(self) -> str:
        """What it has written so far."""
        return self._log.read_text("utf-8")

    def n_up(self, proxy: str = "replicas") -> int:
        """Servers that it sends requests to."""
        return int(self._sum("haproxy_server_status", proxy, 'state="UP"'))

    def n_retried(self) -> int:
        """Requests that it has sent to another replica."""
        return int(self._sum("haproxy_backend_redispatch_warnings_total", "replicas"))

    def wait_for(self, number: int, owner: int = 1) -> None:
        """Wait until it sends requests to so many replicas, and to the owner or not."""
        deadline_s = monotonic() + DEADLINE_S
        while True:
            try:
                found = self.n_up(), self.n_up("owner")
            except httpx.TransportError:
                found = 0, 0
            if found == (number, owner):
                return
            assert self._process.poll() is None, self.log
            assert monotonic() < deadline_s, (found, self.log)
            sleep(0.05)

    def _sum(self, metric: str, proxy: str, label: str = "") -> float:
        page = httpx.get(f"{self._operations}/metrics", timeout=DEADLINE_S, trust_env=False).text
        lines = re.findall(rf"^{metric}{{(.*?)}} (\S+)$", page, flags=re.MULTILINE)
        return sum(
            float(value)
            for labels, value in lines
            if f'proxy="{proxy}"' in labels and label in labels
        )

    def __enter__(self) -> "Balancer":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(DEADLINE_S)
        finally:
            self._process.kill()  # one that has ended is not harmed
            self._names.close()
