"""Run a plan against a server: the loops that send, and the quiet pass before them.

    report = asyncio.run(run_load(LoadPlan(url, n_clients=32, seconds=90)))

Bodies, replies and vectors are not kept: memory does not grow with the run, but for a row a
second. Latency counts from when a request was due, so that a server that stalls, and so holds
up the requests behind, cannot hide it (coordinated omission).
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from itertools import islice
from math import inf
from random import Random
from typing import Any, Protocol

from plimsoll.bench.load.arrivals import Rate, arrivals
from plimsoll.bench.load.bodies import HANG_UP, Body, BodyPool, Ingredients, body_of
from plimsoll.bench.load.client import Client
from plimsoll.bench.load.exchange import NoReplyError
from plimsoll.bench.load.plan import LoadPlan, PlanError
from plimsoll.bench.load.replies import Outcome, Verdict, judge, remedy_of
from plimsoll.bench.load.report import ClientFigures, LoadReport
from plimsoll.bench.load.samples import TOLERANCE, Samples
from plimsoll.bench.load.tally import Tally
from plimsoll.bench.load.texts import TextSource

__all__ = ["LoadPlan", "LoadReport", "PlanError", "QuietPassError", "Rate", "run_load"]

PAUSE_S = 0.05  # of a closed-loop client after a refusal or a failure
LONGEST_PAUSE_S = 120.0  # however long a server asks for
WATCH_S = 0.5
QUIET_TRIES = 60
QUIET_PAUSE_S = 2.0  # between tries, while a model loads


class QuietPassError(Exception):
    """The server did not embed the samples before the load began."""


class Clock(Protocol):
    """Seconds that only go forward."""

    def now(self) -> float:
        """Seconds since some moment."""

    async def sleep_until(self, when_s: float) -> None:
        """Return when that moment has come."""


class SystemClock:
    """The machine's."""

    def now(self) -> float:
        """Seconds since some moment."""
        return time.monotonic()

    async def sleep_until(self, when_s: float) -> None:
        """Return when that moment has come."""
        await asyncio.sleep(max(0.0, when_s - self.now()))


async def run_load(
    plan: LoadPlan,
    *,
    clock: Clock | None = None,
    stop: asyncio.Event | None = None,
    watch: Callable[[Tally, float], None] | None = None,
) -> LoadReport:
    """Run the plan to its end and report.

    stop: ends the run early, and is set by the first answer that every request would get; what
    was under way is then `unfinished`. watch: called twice a second with the counts so far and
    the seconds since the start. Raises QuietPassError.
    """
    clock = clock or SystemClock()
    stop = stop or asyncio.Event()
    samples = await _embed_quietly(plan, clock) if plan.n_verified else None
    run = _Run(plan, clock, samples, stop)
    cpu_s = time.process_time()
    sending = asyncio.create_task(run.send_all())
    tasks: list[asyncio.Task[Any]] = [sending]
    tasks.append(asyncio.create_task(stop.wait()))
    if watch is not None:
        tasks.append(asyncio.create_task(_watch(run, watch)))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        interrupted = not sending.done()
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return run.report(cpu_s=time.process_time() - cpu_s, interrupted=interrupted)


class _Run:
    """Owns the counts and the pool of one run."""

    def __init__(
        self, plan: LoadPlan, clock: Clock, samples: Samples | None, stop: asyncio.Event
    ) -> None:
        self._plan = plan
        self._stop = stop
        self._clock = clock
        self._samples = samples
        self._pool = BodyPool(
            plan.mix,
            Ingredients(TextSource(plan.texts), plan.huge_tokens),
            plan.seed,
            samples=samples.texts if samples else (),
            fresh=plan.fresh,
        )
        self.tally = Tally(plan.mix)
        self._n_begun = 0
        self._start_s = clock.now()
        self._end_s = self._start_s + (plan.seconds or inf)

    def since_start_s(self) -> float:
        """Seconds since the run began."""
        return self._clock.now() - self._start_s

    async def send_all(self) -> None:
        """Return when the plan has been carried out and every request has ended."""
        if self._plan.rate is not None:
            await self._open_loop(self._plan.rate)
            return
        async with asyncio.TaskGroup() as clients:
            for _ in range(self._plan.n_clients or 0):
                clients.create_task(self._closed_loop())

    def report(self, *, cpu_s: float, interrupted: bool) -> LoadReport:
        """Freeze the counts."""
        tally = self.tally
        return LoadReport(
            plan=self._plan.as_dict(),
            seconds=self.since_start_s() if interrupted else tally.last_end_s,
            totals=tally.totals().counts(),
            by_kind={kind: counts.counts() for kind, counts in tally.by_kind.items()},
            timeline=tally.timeline.seconds(),
            client=ClientFigures(cpu_s, tally.lag.percentiles()),
            verification=self._samples.verification() if self._samples else None,
            interrupted=interrupted,
        )

    async def _closed_loop(self) -> None:
        """One client, which sends again when it has its answer."""
        async with self._client() as client:
            while (
                not self._stop.is_set()
                and self._clock.now() < self._end_s
                and self._n_begun < self._n_requests
            ):
                self._n_begun += 1
                verdict = await self._send(client, self._clock.now())
                if pause_s := self._pause_after(verdict):
                    await self._clock.sleep_until(min(self._clock.now() + pause_s, self._end_s))

    def _pause_after(self, verdict: Verdict) -> float:
        if verdict.outcome not in (Outcome.REFUSED, Outcome.FAILED):
            return 0.0
        if self._plan.honour_retry_after and verdict.retry_after_s is not None:
            return min(max(PAUSE_S, verdict.retry_after_s), LONGEST_PAUSE_S)
        return PAUSE_S

    async def _open_loop(self, rate: Rate) -> None:
        """Send every request when it is due, or as soon after as a client is free.

        The client that was free last is taken first, so that no more are kept alive than needed.
        """
        random = Random(self._plan.seed)
        due = arrivals(rate, self._plan.seconds or inf, random)
        free = asyncio.Semaphore(self._plan.max_in_flight)
        idle: list[Client] = []

        async def send_with(client: Client, due_s: float) -> None:
            await self._send(client, due_s)
            idle.append(client)
            free.release()

        async with AsyncExitStack() as clients, asyncio.TaskGroup() as under_way:
            for at_s in islice(due, self._plan.n_requests):
                await free.acquire()
                due_s = self._start_s + at_s
                await self._clock.sleep_until(due_s)
                if self._stop.is_set():
                    break
                client = idle.pop() if idle else await clients.enter_async_context(self._client())
                under_way.create_task(send_with(client, due_s))

    async def _send(self, client: Client, due_s: float) -> Verdict:
        """Send the next request and count what became of it."""
        kind, body = self._pool.draw()
        lag_s = self._clock.now() - due_s
        self.tally.note_sent(kind, at_s=self.since_start_s(), lag_s=lag_s)
        verdict = await self._outcome(client, kind, body, self._plan.timeout_s - lag_s)
        latency_s = self._clock.now() - due_s
        self.tally.note_end(kind, verdict, at_s=self.since_start_s(), latency_s=latency_s)
        if remedy_of(verdict.cause):
            self._stop.set()
        return verdict

    async def _outcome(self, client: Client, kind: str, body: Body, patience_s: float) -> Verdict:
        if patience_s <= 0:
            return Verdict(Outcome.FAILED, "overdue: every client was waiting", timed_out=True)
        try:
            async with asyncio.timeout(patience_s):
                if kind == HANG_UP:
                    await client.hang_up(body.content)
                    return Verdict(Outcome.HUNG_UP)
                answer = await client.post(body.content)
        except TimeoutError:
            return Verdict(Outcome.FAILED, "no reply in time", timed_out=True)
        except NoReplyError as error:
            return Verdict(Outcome.FAILED, str(error))
        return judge(body, answer, self._samples)

    @property
    def _n_requests(self) -> float:
        return inf if self._plan.n_requests is None else self._plan.n_requests

    def _client(self) -> Client:
        return Client(self._plan.url, self._plan.headers)


async def _watch(run: _Run, watch: Callable[[Tally, float], None]) -> None:
    while True:  # until cancelled
        await asyncio.sleep(WATCH_S)
        watch(run.tally, run.since_start_s())


async def _embed_quietly(plan: LoadPlan, clock: Clock) -> Samples:
    """Vectors of the samples, one text at a time and nothing beside it."""
    random = Random(plan.seed)
    source = TextSource(plan.texts)
    texts = [source.draw(random) for _ in range(plan.n_verified)]
    vectors = []
    async with Client(plan.url, plan.headers) as client:
        for text in texts:
            vectors.append(await _quiet_vector(plan, client, clock, text))
    return Samples(texts, vectors, 0.0 if plan.exact else TOLERANCE)


async def _quiet_vector(plan: LoadPlan, client: Client, clock: Clock, text: str) -> list[float]:
    body = body_of(text)
    verdict = Verdict(Outcome.FAILED)
    for _ in range(QUIET_TRIES):
        try:
            async with asyncio.timeout(plan.timeout_s):
                answer = await client.post(body.content)
        except (TimeoutError, NoReplyError) as error:
            raise QuietPassError(str(error) or "no reply in time") from error
        verdict = judge(body, answer)
        vector = answer.reader.content().first_vector if verdict.outcome is Outcome.DENSE else None
        if vector is not None:
            return vector
        if verdict.outcome not in (Outcome.SPARSE, Outcome.REFUSED):
            break
        await clock.sleep_until(clock.now() + QUIET_PAUSE_S)
    found = f"{verdict.outcome} {verdict.cause}".rstrip()
    raise QuietPassError("; ".join(filter(None, (found, remedy_of(verdict.cause)))))
