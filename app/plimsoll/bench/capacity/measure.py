"""Measure one running server: a short text alone, many of them, and lists."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import httpx

from plimsoll.bench.capacity.figures import Figures
from plimsoll.bench.load.plan import LoadPlan
from plimsoll.bench.load.report import LoadReport
from plimsoll.bench.load.runner import run_load
from plimsoll.bench.load.tally import Tally

N_CLIENTS, N_LIST_CLIENTS, LIST_TEXTS = 16, 4, 50
SETTLED_S = 3.0  # after which a server has given back what its runs took
HEALTH_TIMEOUT_S = 10.0


class MeasureError(Exception):
    """A server that cannot be measured."""


async def measure(
    url: str,
    headers: Mapping[str, str],
    *,
    seconds: float,
    allow_remote: bool,
    say: Callable[[str], None],
    watch: Callable[[Tally, float], None] | None = None,
) -> Figures:
    """Figures of the server at `url`, by loads of so many seconds each.

    allow_remote: it may be on another machine. say: told what is measured now.
    Raises MeasureError and PlanError.
    """
    base = LoadPlan(
        url=url, n_clients=1, seconds=seconds, headers=headers, allow_remote=allow_remote
    )

    async def load(told: str, n_clients: int, mix: str) -> LoadReport:
        say(told)
        plan = replace(base, n_clients=n_clients, mix={mix: 1.0})
        report = await run_load(plan, watch=watch)
        totals = report.totals
        if not totals.dense or totals.dense < totals.n_replies + totals.failed:
            causes = ", ".join(totals.causes) or "no answer"
            raise MeasureError(f"not every request was answered with vectors: {causes}")
        return report

    await _health(base)  # the first message of a server that is not there
    lone = await load("one short text after the other", 1, "short")
    short = await load(f"short texts of {N_CLIENTS} clients", N_CLIENTS, "short")
    lists = await load(f"lists of {LIST_TEXTS} texts", N_LIST_CLIENTS, f"list{LIST_TEXTS}")
    await asyncio.sleep(SETTLED_S)
    health = await _health(base)
    return Figures(
        version=health["version"],
        model=health["model"]["name"],
        compute=health["model"]["compute"],
        dimensions=health["model"]["dimensions"],
        cores=health["cpu"]["cores"],
        n_threads=health["plan"]["engine_threads"],
        rest_bytes=health["memory"]["used_bytes"],
        short_tokens=short.totals.tokens / short.totals.dense,
        lone_s=lone.totals.latency.p50_s or 0.0,
        short_per_s=short.answers_per_s,
        list_texts=LIST_TEXTS,
        list_tokens=lists.totals.tokens / lists.totals.dense,
        list_tokens_per_s=lists.tokens_per_s,
    )


async def _health(plan: LoadPlan) -> dict[str, Any]:
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=HEALTH_TIMEOUT_S) as client:
            answer = await client.get(f"{plan.url.rstrip('/')}/health", headers=dict(plan.headers))
            found: dict[str, Any] = answer.json()
            found["model"]["name"]  # or it is another program's
            return found
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise MeasureError(f"{plan.url} does not answer GET /health as Plimsoll: {error}") from None
