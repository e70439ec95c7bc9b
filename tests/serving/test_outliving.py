"""What must go on although something has gone wrong that no rule foresaw."""

import asyncio
from collections.abc import Sequence

import pytest

from plimsoll.errors import ModelLoadError
from plimsoll.models.slot import ModelState
from plimsoll.policy.breaker import BreakerState
from plimsoll.policy.costs import NOTHING
from plimsoll.serving.tasks import EmbedTask
from tests.fakes import DEADLINE_S, FakeClock, FakeModel, FakeOpener, FakeServer, fake_slot, metric
from tests.pressure import FakeMemory, error_of, serving


class Unpredictable(FakeModel):
    """What a run of it takes cannot be told, until it is mended."""

    is_broken = True

    def run_bytes(self, lengths: Sequence[int], **options: object) -> int:
        if "n_threads" in options and self.is_broken:
            raise MemoryError
        return super().run_bytes(lengths)


def test_the_engines_thread_outlives_an_error_before_a_run():
    """Without it every later request would hang, on a server that says it is ready."""
    model = Unpredictable()
    with serving(model) as (server, client):
        broken = client.post("/embed", json={"input": "a"})
        model.is_broken = False
        mended = client.post("/embed", json={"input": "a"})
        queued = metric(server.telemetry.render().decode(), "plimsoll_queue_tokens")

    assert error_of(broken) == (500, "internal_error")
    assert mended.status_code == 200
    assert queued == 0


def test_a_model_that_fails_to_open_in_an_unknown_way_has_failed():
    """Taken for closed, it would be opened anew for every request, and the server be ready."""

    class Breaking(FakeOpener):
        def open(self, progress: object) -> FakeModel:
            raise MemoryError("no tables")

    slot = fake_slot(Breaking())

    async def scenario() -> None:
        with pytest.raises(ModelLoadError, match="no tables"):
            async with slot.lease():
                pass

    asyncio.run(scenario())
    assert slot.state is ModelState.FAILED
    assert isinstance(slot.error, ModelLoadError)


def test_a_probe_in_which_nothing_runs_proves_nothing():
    """The breaker would close by an empty text, into the memory that is short."""
    clock = FakeClock()
    with serving(clock=clock) as (server, client):
        breaker = server.core.governor.breaker
        client.post("/embed", json={"input": "a"})
        for _ in range(3):
            breaker.record_failure()
        clock.now_s += 60
        empty = client.post("/embed", json={"input": ["", " "]})
        after_empty = breaker.state
        client.post("/embed", json={"input": "a ship"})
        clock.now_s += 1
        server.core.control_loop.tick()

    assert [each["code"] for each in empty.json()["errors"]] == ["empty_text"] * 2
    assert after_empty is BreakerState.HALF_OPEN
    assert breaker.state is BreakerState.CLOSED


def test_a_ranking_asks_the_breaker_once():
    """As a probe, its query's success would turn its own documents away."""
    clock = FakeClock()
    with serving(clock=clock) as (server, client):
        client.post("/embed", json={"input": "a"})
        for _ in range(3):
            server.core.governor.breaker.record_failure()
        clock.now_s += 60
        body = {"query": "a", "documents": ["a ship", "a sea"], "fallback": "none"}
        reply = client.post("/rank", json=body)

    assert (reply.status_code, reply.json()["kind"]) == (200, "dense")


def test_a_text_that_comes_as_the_engine_stops_is_not_waited_for():
    """Its request would hold up the server's end."""
    server = FakeServer(FakeOpener(), monitor=FakeMemory())
    executor = server.core.executor

    async def scenario() -> None:
        async with server.core.models.lease() as model:
            await asyncio.to_thread(executor.stop)
            ids = model.tokenize(["a"], None)[0].ids
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(executor.encode(model, [ids], 4), DEADLINE_S)

    asyncio.run(scenario())
    server.parsing.shutdown()
    for thread in server.core.threads:
        thread.shutdown()


def test_what_could_not_fit_beside_its_own_body_is_told_so_by_explain_too():
    """It would be sent in vain: the body is held until the reply."""
    with serving() as (server, _):
        permit = server.core.gate.permit()
        permit.keep(server.core.governor.admission.largest_bytes(NOTHING) - 1024)
        task = EmbedTask(["a ship"] * 100)

        async def explained() -> str:
            return (await server.core.service.explain(task, permit)).outcome

        outcome = asyncio.run(explained())
        permit.leave()

    assert outcome == "too_large"
