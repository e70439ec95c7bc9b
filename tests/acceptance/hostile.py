"""Connections that mean no good, in a process of their own: so many, evenly over some seconds.

`python -m tests.acceptance.hostile HOST PORT CONNECTIONS SECONDS` prints, as JSON, how many of each
kind there were and how they ended. They come from another address of this machine than the client
that is measured beside them. None sends a text, so that what they cost is what connections cost.
"""

import asyncio
import json
import ssl
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from itertools import cycle, islice
from random import Random

ADDRESS = "127.0.0.2"
PATIENCE_S = 60.0  # of one connection; the server's limits end it before
DRIP_S = 0.5
GET = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@dataclass
class Connection:
    """One connection, and what has come over it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    random: Random
    received: bytes = b""

    async def send(self, data: bytes) -> None:
        """Send."""
        self.writer.write(data)
        await self.writer.drain()

    async def drip(self, data: bytes) -> None:
        """Send a byte at a time until the server has had enough."""
        reading = asyncio.ensure_future(self.reader.read())
        try:
            for byte in data:
                self.writer.write(bytes([byte]))
                done, _ = await asyncio.wait([reading], timeout=DRIP_S)
                if done:
                    break
            self.received = await reading
        finally:
            reading.cancel()

    async def read(self) -> None:
        """Read until the server closes."""
        self.received = await self.reader.read()


async def slow_header(connection: Connection) -> None:
    """A field at a time, for ever."""
    await connection.drip(b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X-A: b\r\n" * 100)


async def slow_body(connection: Connection) -> None:
    """A body that never becomes whole."""
    await connection.send(POST + b"Content-Length: 100000\r\n\r\n")
    await connection.drip(b"[" * 1000)


async def silent(connection: Connection) -> None:
    """Nothing at all."""
    await connection.read()


async def half_closed(connection: Connection) -> None:
    """Shut after a half of a header, after a half of a body, or after a whole request."""
    begun = (GET[:20], POST + b"Content-Length: 10\r\n\r\n{", GET)
    await connection.send(connection.random.choice(begun))
    connection.writer.write_eof()
    await connection.read()


async def oversize(connection: Connection) -> None:
    """A header of 64 KiB, or a body that says it has a gigabyte."""
    header = GET[:-2] + b"X-Long: " + b"x" * (64 << 10) + b"\r\n\r\n"
    body = POST + b"Content-Length: 1000000000\r\n\r\n" + b"x" * (64 << 10)
    await connection.send(connection.random.choice((header, body)))
    await connection.read()


async def pipelined(connection: Connection) -> None:
    """Many requests at once, the last of which asks to close; or gone before they are answered."""
    last = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    await connection.send(GET * 30 + last)
    if connection.random.random() < 0.5:
        await connection.read()


async def random_bytes(connection: Connection) -> None:
    """What is no protocol."""
    await connection.send(connection.random.randbytes(connection.random.randint(1, 4096)))
    if connection.random.random() < 0.5:
        connection.writer.write_eof()
    await connection.read()


async def tls_hello(connection: Connection) -> None:
    """What a client of https:// begins with."""
    await connection.send(hello())
    await connection.read()


@cache
def hello() -> bytes:
    """The first message of a TLS client; made once, since certificates are read for it."""
    sent, context = ssl.MemoryBIO(), ssl.create_default_context()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname="localhost").do_handshake()
    return sent.read()


KINDS: tuple[Callable[[Connection], Awaitable[None]], ...] = (
    slow_header,
    slow_body,
    silent,
    half_closed,
    oversize,
    pipelined,
    random_bytes,
    tls_hello,
)


async def attack(
    host: str, port: int, kind: Callable[[Connection], Awaitable[None]], random: Random
) -> str:
    """One connection; the status of the first answer, or how it ended without one."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            streams = await asyncio.open_connection(host, port, local_addr=(ADDRESS, 0))
    except TimeoutError:
        return "not accepted"
    except OSError as error:
        return type(error).__name__
    connection = Connection(*streams, random)
    try:
        async with asyncio.timeout(PATIENCE_S):
            await kind(connection)
    except TimeoutError:
        return "never ended"
    except OSError as error:
        return connection.received[9:12].decode("latin-1") or type(error).__name__
    finally:
        connection.writer.transport.abort()
    return connection.received[9:12].decode("latin-1") or "closed"


async def attack_all(
    host: str, port: int, number: int, seconds: float
) -> dict[str, dict[str, int]]:
    """So many connections of all kinds, evenly over so many seconds; how each kind ended."""
    loop = asyncio.get_running_loop()
    start_s = loop.time()
    ends: dict[str, Counter[str]] = {kind.__name__: Counter() for kind in KINDS}
    running = set()
    for place, kind in enumerate(islice(cycle(KINDS), number)):
        await asyncio.sleep(start_s + place * seconds / number - loop.time())
        one = asyncio.create_task(attack(host, port, kind, Random(place)))
        one.add_done_callback(partial(_note, ends[kind.__name__]))
        running.add(one)
        one.add_done_callback(running.discard)
    while running:
        await asyncio.wait(running)
    return {kind: dict(sorted(found.items())) for kind, found in ends.items()}


def _note(ends: Counter[str], one: "asyncio.Task[str]") -> None:
    ends[one.result()] += 1


if __name__ == "__main__":
    given = sys.argv[1:]
    found = asyncio.run(attack_all(given[0], int(given[1]), int(given[2]), float(given[3])))
    print(json.dumps(found))
