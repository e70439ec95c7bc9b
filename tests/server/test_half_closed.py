"""Connections that are shut on one side: whether the client waits or has gone."""

import asyncio

import pytest

from plimsoll.server.protocol import INTERIM_ANSWER
from tests.server.served import REQUEST, HeldApp, served


def test_a_client_that_shuts_its_sending_side_gets_its_answer():
    """As `nc -N` and simple scripts do once they have sent all that they have to say."""

    async def scenario() -> bytes:
        app = HeldApp()
        async with served(app) as server:
            client = await server.connect()
            client.writer.write(REQUEST)
            client.writer.write_eof()
            await app.asked.wait()
            interim = await client.reader.readexactly(len(INTERIM_ANSWER))
            app.released.set()
            return interim + await client.all()  # to the end: the connection is closed

    answer = asyncio.run(scenario())

    assert answer.startswith(INTERIM_ANSWER + b"HTTP/1.1 200 OK")
    assert answer.count(b"HTTP/1.1") == 2
    assert b"answer" in answer


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_client_that_hangs_up_is_known_to_be_gone(version: bytes):
    """Its work is dropped; the end of its sending looks the same as that of one who waits."""

    async def scenario() -> None:
        app = HeldApp()
        async with served(app) as server:
            client = await server.connect()
            client.writer.write(REQUEST.replace(b"HTTP/1.1", b"HTTP/" + version))
            await app.asked.wait()
            client.writer.close()
            await app.gone.wait()

    asyncio.run(scenario())


def test_a_client_that_shuts_its_side_within_its_body_is_gone():
    """What it asked for will never be whole."""

    async def scenario() -> bytes:
        async with served(HeldApp()) as server:
            client = await server.connect()
            client.writer.write(REQUEST[:-1])
            client.writer.write_eof()
            return await client.all()

    assert INTERIM_ANSWER not in asyncio.run(scenario())
