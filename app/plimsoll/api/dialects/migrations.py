"""Migrations: begun, watched, paused, resumed, judged, cut over, taken back."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Body, Request, Response
from fastapi.openapi.models import Example
from fastapi.responses import StreamingResponse

from plimsoll.api.edge.access import Access, needs
from plimsoll.api.edge.body import permit_of
from plimsoll.api.edge.documented import (
    OF_A_BODY,
    OF_A_CLIENT,
    OF_A_COLLECTION,
    OF_A_CUTOVER,
    OF_A_HOOK,
    OF_A_KEY,
    OF_A_MIGRATION,
    OF_A_MIRROR,
    OF_A_MODEL,
    OF_A_PATH,
    OF_A_STATE,
    OF_AN_OPERATOR,
    OF_AN_OUTSIDE,
    OF_THE_STORE,
    Responses,
    documented,
)
from plimsoll.api.edge.json_body import StrictJSONRoute
from plimsoll.api.edge.refusals import NATIVE
from plimsoll.api.migration_fields import (
    MigrationFields,
    MigrationList,
    MigrationNumber,
    MigrationReport,
)
from plimsoll.api.migration_requests import (
    ChangeRequest,
    CutoverRequest,
    MigrationRequest,
    ProgressiveRequest,
    ShadowRequest,
    ValidateRequest,
    queries_json,
)
from plimsoll.api.replies import json_response
from plimsoll.migration.as_json import migration_json
from plimsoll.migration.migrations import Migrations
from plimsoll.migration.status import MigrationStatus
from plimsoll.telemetry.current_request import current_request

EXAMPLES: dict[str, Example] = {
    "default": {
        "summary": "Move a collection",
        "value": {"collection": "ships", "model": "all-MiniLM-L6-v2"},
    },
}
SHARES: dict[str, Example] = {
    "tenth": {"summary": "Compare a tenth of the searches", "value": {"share": 0.1}},
}
SWITCHES: dict[str, Example] = {
    "on": {"summary": "Let searches read both versions", "value": {"on": True}},
}
EVENTS: Responses = {
    200: {
        "description": "Events named `migration`, one a second, each with the migration as JSON; "
        "the stream ends when nothing is under way.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


Change = Callable[[int, str, str], Awaitable[MigrationStatus]]
"""Changes a migration's state: of this number, asked by whom, and why."""


def router(migrations: Migrations) -> APIRouter:
    """The routes over the use case."""
    routes = APIRouter(route_class=StrictJSONRoute, tags=["migrations"])
    of_a_change = documented(
        NATIVE, OF_AN_OPERATOR, OF_A_BODY, OF_A_MIGRATION, OF_A_STATE, OF_A_MIRROR, OF_AN_OUTSIDE
    )

    @routes.post(
        "/migrations",
        response_model=MigrationFields,
        responses=documented(
            NATIVE,
            OF_AN_OPERATOR,
            OF_A_BODY,
            OF_A_MODEL,
            OF_A_COLLECTION,
            OF_A_HOOK,
            OF_A_STATE,
            OF_A_MIRROR,
        ),
        summary="Begin a migration",
    )
    @needs(Access.ADMIN)
    async def begin_migration(
        body: Annotated[MigrationRequest, Body(openapi_examples=EXAMPLES)], request: Request
    ) -> Response:
        status = await migrations.begin(
            body.collection,
            body.model,
            permit_of(request),
            _who(),
            body.why,
            dimensions=body.dimensions,
            judged=queries_json(body.queries),
            hooks=body.hooks,
            bridge=body.bridge,
            starts=body.start,
            is_progressive=body.progressive,
        )
        return json_response(migration_json(status))

    @routes.get(
        "/migrations",
        response_model=MigrationList,
        responses=documented(NATIVE, OF_A_CLIENT, OF_THE_STORE),
        summary="Every migration",
    )
    async def get_migrations() -> Response:
        found = await migrations.statuses()
        return json_response({"migrations": [*map(migration_json, found)]})

    @routes.get(
        "/migrations/{number}",
        response_model=MigrationFields,
        responses=documented(NATIVE, OF_A_CLIENT, OF_A_PATH, OF_A_MIGRATION),
        summary="A migration",
    )
    async def get_migration(number: MigrationNumber) -> Response:
        return json_response(migration_json(await migrations.status(number)))

    @routes.get(
        "/migrations/{number}/report",
        response_model=MigrationReport,
        responses=documented(NATIVE, OF_A_CLIENT, OF_A_PATH, OF_A_MIGRATION),
        summary="A migration, and how far it was when",
    )
    async def report_migration(number: MigrationNumber) -> Response:
        status, history = await migrations.status(number), await migrations.history(number)
        return json_response(
            {"migration": migration_json(status), "progress": [*map(asdict, history)]}
        )

    @routes.get(
        "/migrations/{number}/events",
        response_class=StreamingResponse,
        responses={**documented(NATIVE, OF_A_KEY, OF_A_PATH, OF_A_MIGRATION), **EVENTS},
        summary="A migration, as server-sent events",
    )
    @needs(Access.EMBED, is_counted=False)
    async def watch_migration(number: MigrationNumber) -> Response:
        await migrations.status(number)  # refuse before the first event
        return StreamingResponse(
            _events(migrations.watch(number)),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store"},
        )

    def add_change(path: str, name: str, summary: str, change: Change) -> None:
        @routes.post(
            f"/migrations/{{number}}/{path}",
            name=f"{name}_migration",
            response_model=MigrationFields,
            responses=of_a_change,
            summary=summary,
        )
        @needs(Access.ADMIN)
        async def change_migration(number: MigrationNumber, body: ChangeRequest) -> Response:
            return json_response(migration_json(await change(number, _who(), body.why)))

    add_change("pause", "pause", "Pause a migration", migrations.pause)
    add_change("resume", "resume", "Begin a planned migration, or go on", migrations.resume)
    add_change("cancel", "cancel", "Give up a migration before cut-over", migrations.cancel)
    add_change(
        "rollback", "roll_back", "Let searches read the old version again", migrations.roll_back
    )
    add_change("purge", "purge", "Drop the version that searches do not read", migrations.purge)

    @routes.post(
        "/migrations/{number}/validate",
        response_model=MigrationFields,
        responses=of_a_change,
        summary="Judge a migration again",
    )
    @needs(Access.ADMIN)
    async def validate_migration(number: MigrationNumber, body: ValidateRequest) -> Response:
        queries = None if body.queries is None else queries_json(body.queries)
        status = await migrations.validate(number, queries, _who(), body.why)
        return json_response(migration_json(status))

    @routes.post(
        "/migrations/{number}/cutover",
        response_model=MigrationFields,
        responses=documented(
            NATIVE,
            OF_AN_OPERATOR,
            OF_A_BODY,
            OF_A_MIGRATION,
            OF_A_STATE,
            OF_A_CUTOVER,
            OF_A_MIRROR,
            OF_AN_OUTSIDE,
        ),
        summary="Let searches read the new version",
    )
    @needs(Access.ADMIN)
    async def cut_over_migration(number: MigrationNumber, body: CutoverRequest) -> Response:
        status = await migrations.cut_over(number, _who(), body.why, force=body.force)
        return json_response(migration_json(status))

    @routes.post(
        "/migrations/{number}/shadow",
        response_model=MigrationFields,
        responses=of_a_change,
        summary="Compare a share of live searches",
    )
    @needs(Access.ADMIN)
    async def shadow_migration(
        number: MigrationNumber, body: Annotated[ShadowRequest, Body(openapi_examples=SHARES)]
    ) -> Response:
        status = await migrations.set_shadow(number, body.share, _who(), body.why)
        return json_response(migration_json(status))

    @routes.post(
        "/migrations/{number}/progressive",
        response_model=MigrationFields,
        responses=of_a_change,
        summary="Let searches read both versions before cut-over",
    )
    @needs(Access.ADMIN)
    async def progressive_migration(
        number: MigrationNumber,
        body: Annotated[ProgressiveRequest, Body(openapi_examples=SWITCHES)],
    ) -> Response:
        status = await migrations.set_progressive(number, _who(), body.why, is_on=body.on)
        return json_response(migration_json(status))

    return routes


def _who() -> str:
    """Who asks: the log has more under the request's id."""
    request = current_request()
    return "unknown" if request is None else f"request {request.id}"


async def _events(statuses: AsyncIterator[MigrationStatus]) -> AsyncIterator[bytes]:
    async for status in statuses:
        yield _event(migration_json(status))


def _event(content: dict[str, Any]) -> bytes:
    return b"event: migration\ndata: " + orjson.dumps(content) + b"\n\n"
