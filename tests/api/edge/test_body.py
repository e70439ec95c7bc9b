"""Bodies on their way in: admitted before they are read, timed, given back, refused."""

import asyncio

import pytest

from plimsoll.api.edge import body as edge
from plimsoll.api.edge.json_cost import json_cost
from plimsoll.errors import MemoryPressureError, PlimsollError, TooLargeError
from plimsoll.serving.gate import RequestPermit
from tests.api.edge.bodies import (
    FULL,
    KIB,
    MIB,
    ROUTE,
    Bodies,
    Client,
    body_of,
    breaking_opener,
    serving,
)
from tests.fakes import DEADLINE_S, FakeOpener, FakeServer, metric

# --- admitted before it is read -------------------------------------------------------------


def test_a_body_is_reserved_by_its_length_before_a_byte_of_it_is_read():
    """Once it has been read, its memory has been spent."""
    bodies = Bodies()

    class Watching(Client):
        async def receive(self) -> dict:
            assert bodies.asked[:1] == [100 * KIB]
            return await super().receive()

    with serving(bodies) as server:
        client = Watching(body_of(100 * KIB))
        client.call(server)

    assert client.status == 200
    assert bodies.asked[1:] == [100 * KIB + json_cost(client.body).parsed_bytes]


def test_a_body_without_a_length_is_reserved_in_steps():
    """Each step once, rounded up, never beyond what a body may have."""
    bodies = Bodies()
    client = Client(body_of(700 * KIB), declares=False)

    with serving(bodies, body_limit_bytes=720 * KIB) as server:
        client.call(server)

    assert client.status == 200
    asked = [256 * KIB, 512 * KIB, 720 * KIB]
    assert bodies.asked[:3] == asked
    assert len(bodies.asked) == 4  # the last for parsing


def test_parsing_is_reserved_before_it_begins():
    """A text of one-byte characters with one emoji takes four bytes for each."""
    bodies = Bodies()
    body = body_of(100 * KIB).replace(b"aaaa", "🚢".encode(), 1)

    with serving(bodies) as server:
        client = Client(body)
        client.call(server)

    assert client.status == 200
    assert bodies.asked[-1] == len(body) + json_cost(body).parsed_bytes
    assert bodies.asked[-1] > 5 * len(body)


def test_a_body_that_there_is_no_room_to_parse_is_refused_unparsed():
    """It has been read whole, so that its connection may serve the next request."""
    bodies = Bodies(most_bytes=150 * KIB)

    with serving(bodies) as server:
        client = Client(body_of(100 * KIB))
        client.call(server)

    assert (client.status, client.error["code"]) == (429, "queue_full")
    assert b"connection" not in client.answer_headers
    assert bodies.held_bytes == 0


def test_small_bodies_pass_without_being_asked():
    """Most requests are; a reservation for each would cost more than it protects."""
    bodies = Bodies(most_bytes=0)

    with serving(bodies) as server:
        client = Client(body_of(64 * KIB - 1))
        client.call(server)

    assert (client.status, bodies.asked) == (200, [])


def test_a_reservation_is_held_until_the_answer_has_been_sent():
    """The texts are alive as long, and so is the answer."""
    bodies = Bodies()
    held = []

    class Watching(Client):
        async def send(self, message: dict) -> None:
            held.append(bodies.held_bytes)
            await super().send(message)

    with serving(bodies) as server:
        Watching(body_of(100 * KIB)).call(server)

    assert len(held) == 2
    assert min(held) >= 100 * KIB
    assert bodies.held_bytes == 0


# --- given back, however it ends ------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (body_of(100 * KIB), 200),
        (body_of(100 * KIB)[:-1], 400),
        (body_of(100 * KIB)[:-1] + b',"colour":1}', 400),
        (b"[" * 100 * KIB, 400),
        (b'{"input":[' + b"{}," * MIB + b"{}]}", 413),
        (body_of(9 * MIB), 413),
        (body_of(100 * KIB), 500),
    ],
    ids=["fine", "no JSON", "wrong field", "deep", "many", "too large", "internal"],
)
def test_a_reservation_is_given_back_after_each_kind_of_answer(body: bytes, status: int):
    """One that leaks makes the server smaller for ever."""
    bodies = Bodies()
    client = Client(body, declares=False)

    with serving(bodies, breaking_opener() if status == 500 else None) as server:
        client.call(server)

    assert client.status == status
    assert bodies.asked
    assert bodies.held_bytes == 0


def test_a_reservation_is_given_back_when_the_client_goes_in_the_middle_of_its_body():
    """Half a body is no request."""
    bodies = Bodies()

    class Leaving(Client):
        async def receive(self) -> dict:
            if self.n_received > 200 * KIB:
                return {"type": "http.disconnect"}
            return await super().receive()

    with serving(bodies) as server:
        client = Leaving(body_of(MIB))
        client.call(server)
        page = server.telemetry.render().decode()

    assert client.sent == []
    assert (bodies.asked, bodies.held_bytes) == ([MIB], 0)
    labels = f'{{kind="none",model="none",route="{ROUTE}",status="499"}}'
    assert metric(page, f"plimsoll_requests_total{labels}") == 1


def test_a_reservation_is_given_back_when_the_client_goes_while_it_is_computed():
    """Its answer is of no use any more; others wait for the memory."""
    bodies = Bodies()
    opener = FakeOpener()
    model = opener.next_model
    model.released.clear()
    server = FakeServer(opener, new_permit=bodies.permit)
    client = Client(
        body_of(100 * KIB), then=lambda: asyncio.to_thread(model.encoding.wait, DEADLINE_S)
    )

    async def hang_up_during_the_first_wave() -> None:
        request = server.app(client.scope, client.receive, client.send)
        try:
            await asyncio.wait_for(request, DEADLINE_S)
            assert bodies.held_bytes == 0
        finally:
            model.released.set()
            await asyncio.to_thread(server.close)

    asyncio.run(hang_up_during_the_first_wave())

    assert client.sent == []
    assert bodies.asked


def test_a_reservation_is_given_back_when_the_server_cancels_the_request():
    """As it does at the end of its patience when it shuts down."""
    bodies = Bodies()

    async def cancel_in_the_middle(server: FakeServer) -> None:
        waiting = asyncio.Event()

        class Stalling(Client):
            async def receive(self) -> dict:
                if self.n_received:
                    waiting.set()
                    await asyncio.Event().wait()
                return await super().receive()

        client = Stalling(body_of(MIB))
        request = asyncio.create_task(server.app(client.scope, client.receive, client.send))
        await waiting.wait()
        assert bodies.held_bytes == MIB
        request.cancel()
        await asyncio.wait((request,))
        assert request.cancelled()

    with serving(bodies) as server:
        asyncio.run(cancel_in_the_middle(server))

    assert bodies.held_bytes == 0


# --- refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "code", "waits"),
    [
        (FULL, 429, "queue_full", True),
        (MemoryPressureError("no room", retry_after_s=10), 503, "memory_pressure", True),
        (TooLargeError("at most 5 MiB"), 413, "too_large_for_budget", False),
    ],
)
@pytest.mark.parametrize("declares", [True, False])
def test_a_refused_body_is_answered_first_and_then_read_to_its_end(
    error: PlimsollError, status: int, code: str, waits: bool, declares: bool
):
    """A client that still writes into a closed connection sees a reset and never the reason."""
    bodies = Bodies(300 * KIB, error)
    client = Client(body_of(2 * MIB), declares=declares)

    with serving(bodies) as server:
        client.call(server)
        page = server.telemetry.render().decode()

    assert (client.status, client.error["code"]) == (status, code)
    told = client.answer_headers.get(b"retry-after")
    retry = f"; retry in {told.decode()} s" if told else ""
    assert client.error["message"] == f"{error}{retry}"
    assert client.answer_headers[b"connection"] == b"close"
    assert (b"retry-after" in client.answer_headers) == waits
    assert client.n_received == len(client.body)
    assert [message.get("more_body") for message in client.sent[1:]] == [True, None]
    assert bodies.held_bytes == 0
    assert metric(page, f'plimsoll_errors_total{{code="{code}"}}') == 1


def test_a_refused_body_is_read_on_no_further_than_a_body_may_be_long():
    """Politeness has an end."""
    client = Client(body_of(40 * MIB), declares=False)

    with serving(body_limit_bytes=MIB) as server:
        client.call(server)

    assert (client.status, client.error["code"]) == (413, "body_too_large")
    assert MIB < client.n_received < 3 * MIB


def test_a_refused_body_that_does_not_come_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
):
    """The client has its answer; the connection is closed."""
    monkeypatch.setattr(edge, "DISCARD_S", 0)

    class Stalling(Client):
        async def receive(self) -> dict:
            await asyncio.Event().wait()
            raise AssertionError

    with serving(Bodies(0)) as server:
        client = Stalling(body_of(MIB))
        client.call(server)

    assert client.status == 429
    assert client.sent[-1] == {"type": "http.response.body", "body": b""}


def test_a_client_that_asks_before_it_sends_is_answered_and_not_read():
    """curl sends "Expect: 100-continue" with large bodies: after a refusal there comes none."""
    with serving(Bodies(0)) as server:
        client = Client(body_of(MIB), headers={"expect": "100-continue"})
        client.call(server)

    assert client.status == 429
    assert client.n_received == 0


def test_a_body_that_waits_for_room_is_not_too_slow_for_that(monkeypatch: pytest.MonkeyPatch):
    """Its client is held back meanwhile, or has not been told yet to send it."""
    body_timeout_s = 0.1
    wait = RequestPermit.wait_to_keep

    async def wait_long(self: RequestPermit, n_bytes: int) -> None:
        await asyncio.sleep(2 * body_timeout_s)
        await wait(self, n_bytes)

    monkeypatch.setattr(RequestPermit, "wait_to_keep", wait_long)

    class Sending(Client):
        async def receive(self) -> dict:
            await asyncio.sleep(0.001)
            return await super().receive()

    with serving(Bodies(), body_timeout_s=body_timeout_s) as server:
        client = Sending(body_of(100 * KIB))
        client.call(server)

    assert client.status == 200


def test_a_body_that_comes_too_slowly_is_ended():
    """A connection that trickles holds its memory, and a hundred of them hold all of it."""

    class Stalling(Client):
        async def receive(self) -> dict:
            if self.n_received > 200 * KIB:
                self.body = self.body[: self.n_received]
                if not self.sent:
                    await asyncio.Event().wait()
                return {"type": "http.disconnect"}
            return await super().receive()

    bodies = Bodies()
    with serving(bodies, body_timeout_s=0) as server:
        client = Stalling(body_of(MIB))
        client.call(server)

    assert (client.status, client.error["code"]) == (408, "slow_body")
    assert "PLIMSOLL_BODY_TIMEOUT_S" in client.error["message"]
    assert client.answer_headers[b"connection"] == b"close"
    assert bodies.held_bytes == 0


def test_the_time_for_a_body_does_not_end_a_request_that_is_computed():
    """Only the body's arrival is timed: an answer may take as long as it takes."""
    with serving(body_timeout_s=0) as server:  # past when the body is there at once
        client = Client(body_of(KIB))
        client.call(server)

    assert client.status == 200
