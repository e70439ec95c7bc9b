"""The status page, and the last minutes that it draws. Looks on; opens no model.

What is true now stands in `/health`, which the page asks too; `/status` has what has been.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Path, Response
from pydantic import Field

from plimsoll.api.edge.access import Access, needs
from plimsoll.api.edge.documented import OF_AN_ADMIN_KEY, documented
from plimsoll.api.edge.refusals import NATIVE
from plimsoll.api.operations.page_files import PageFiles
from plimsoll.api.operations.recent import (
    PERIOD_S,
    Latency,
    RecentError,
    RecentRequests,
    ReplyKind,
    Traffic,
)
from plimsoll.api.replies import json_response
from plimsoll.policy.lines import (
    HALVE_ABOVE_RATIO,
    HIGH_RATIO,
    OPEN_RATIO,
    STEP_NAMES,
    TABLE,
)
from plimsoll.serving.core import ServingCore
from plimsoll.serving.state import Moment

PAGE = "status.html"
HTML: dict[str, Any] = {"text/html": {"schema": {"type": "string"}}}


@dataclass(frozen=True, slots=True)
class History:
    """What each tick found, in columns: the newest last and at 0 seconds ago."""

    seconds_ago: list[float]
    used_bytes: list[int]
    working_set_bytes: list[int]
    predicted_bytes: list[int]
    tokens_per_s: list[float]
    ladder_step: list[int]


@dataclass(frozen=True, slots=True)
class Cause:
    """When a step of the memory ladder is taken, and what is done then."""

    when: str
    effects: Sequence[str]


@dataclass(frozen=True, slots=True)
class Rung:
    """A step of the memory ladder."""

    name: str
    rows: list[Cause]


@dataclass(frozen=True, slots=True)
class Lines:
    """Shares of the budget above which used memory changes what the server does."""

    save: float = HIGH_RATIO
    drop_pages: float = HALVE_ABOVE_RATIO
    breaker: float = OPEN_RATIO


@dataclass(frozen=True, slots=True)
class Alerts:
    """Above these an operator should look: the thresholds of the alerts in grafana/rules.yml.

    failed_ratio: of requests (PlimsollErrors). refused_ratio: of requests that do not get what
    they asked for (PlimsollDegraded). slow_s: of 99 in 100 answers (PlimsollSlow).
    """

    failed_ratio: float = 0.01
    refused_ratio: float = 0.05
    slow_s: float = 10.0


@dataclass(frozen=True, slots=True)
class RecentTraffic:
    """Replies in periods of so many seconds: all together first, then by route and model."""

    period_s: float
    sources: list[Traffic]


@dataclass(frozen=True, slots=True)
class Status:
    """The last five minutes of memory and traffic, replies by kind, and the last errors."""

    history: History
    ladder: Annotated[list[Rung], Field(description="From step 0 on.")]
    lines: Lines
    alerts: Alerts
    latency: Latency
    traffic: RecentTraffic
    requests: Annotated[dict[ReplyKind, int], Field(description="Replies since the start.")]
    errors: Annotated[
        list[RecentError], Field(description="Failures before refusals, the newest first.")
    ]


def router(core: ServingCore, recent: RecentRequests) -> APIRouter:
    """The page, its parts and its numbers.

    The page and its parts hold no data, and a browser fetches them before its reader could give a
    key; the numbers need one.
    """
    routes = APIRouter(tags=["operations"])
    parts = PageFiles()

    @routes.get(
        "/",
        response_class=Response,
        response_description="HTML.",
        responses={200: {"content": HTML}, **documented(NATIVE)},
        summary="The status page",
    )
    @needs(Access.OPEN)
    async def get_status_page() -> Response:
        return parts.response(PAGE)

    @routes.get("/pages/{name}", include_in_schema=False)
    @needs(Access.OPEN)
    async def page_part(name: Annotated[str, Path()]) -> Response:
        return parts.response(name)

    @routes.get(
        "/status",
        response_model=Status,
        response_description="What the status page draws.",
        responses=documented(NATIVE, OF_AN_ADMIN_KEY),
        summary="The last minutes: memory, throughput, replies, errors",
    )
    @needs(Access.ADMIN, is_counted=False)
    async def get_status() -> Response:
        return json_response(
            Status(
                history=_history(core.state().history),
                ladder=_ladder(),
                lines=Lines(),
                alerts=Alerts(),
                latency=recent.latency(),
                traffic=RecentTraffic(PERIOD_S, recent.traffic()),
                requests=recent.counts,
                errors=recent.errors,
            ),
            headers={"Cache-Control": "no-store"},
        )

    return routes


def _history(looks: Sequence[Moment]) -> History:
    newest_s = looks[-1].at_s if looks else 0.0
    return History(
        seconds_ago=[round(newest_s - look.at_s, 1) for look in looks],
        used_bytes=[look.used_bytes for look in looks],
        working_set_bytes=[look.working_set_bytes for look in looks],
        predicted_bytes=[look.predicted_bytes for look in looks],
        tokens_per_s=[round(look.tokens_per_s, 1) for look in looks],
        ladder_step=[look.step for look in looks],
    )


def _ladder() -> list[Rung]:
    return [
        Rung(name, [Cause(row.when, row.effects) for row in TABLE if row.step == step])
        for step, name in enumerate(STEP_NAMES)
    ]
