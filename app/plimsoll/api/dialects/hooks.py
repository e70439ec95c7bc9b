"""Hooks of migrations: which may be named, and one asked now. What they run is not shown."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Body, Response
from fastapi.openapi.models import Example
from pydantic import BaseModel, ConfigDict, Field

from plimsoll.api.edge.access import Access, needs
from plimsoll.api.edge.documented import (
    OF_A_BODY,
    OF_A_HOOK,
    OF_A_MIGRATION,
    OF_A_PATH,
    OF_AN_OPERATOR,
    documented,
)
from plimsoll.api.edge.json_body import StrictJSONRoute
from plimsoll.api.edge.refusals import NATIVE
from plimsoll.api.migration_fields import MOST_NUMBER, HookName, HookOutcomeFields
from plimsoll.api.replies import json_response
from plimsoll.migration.as_json import hook_json
from plimsoll.migration.hooks.hooks import MigrationHooks
from plimsoll.migration.hooks.occasion import Hook, Kind
from plimsoll.migration.hooks.records import Moment

EXAMPLES: dict[str, Example] = {
    "default": {"summary": "Without a migration", "value": {"migration": None}}
}


class HookFields(BaseModel):
    """A hook that may be named."""

    name: str
    kind: Kind
    description: str
    when: list[Moment]
    always: Annotated[bool, Field(description="Asked in every migration.")]
    required: Annotated[bool, Field(description="A run ends where it gives no answer.")]
    timeout_s: float
    interval_s: Annotated[float | None, Field(description="Between two looks during a run.")]


class HookList(BaseModel):
    """Every hook, the built-in ones first."""

    hooks: list[HookFields]


class TryRequest(BaseModel):
    """What a hook is asked about."""

    model_config = ConfigDict(extra="forbid")

    migration: Annotated[
        int | None,
        Field(ge=1, le=MOST_NUMBER, description="null: none; some hooks look at one."),
    ] = None


def router(hooks: MigrationHooks) -> APIRouter:
    """The routes over the hooks."""
    routes = APIRouter(route_class=StrictJSONRoute, tags=["migrations"])

    @routes.get(
        "/hooks",
        response_model=HookList,
        responses=documented(NATIVE, OF_AN_OPERATOR),
        summary="Every hook that may be named",
    )
    @needs(Access.ADMIN)
    async def get_hooks() -> Response:
        always, found = hooks.catalog.always, hooks.catalog.hooks.values()
        return json_response({"hooks": [_hook_json(hook, always) for hook in found]})

    @routes.post(
        "/hooks/{name}/run",
        response_model=HookOutcomeFields,
        responses=documented(
            NATIVE, OF_AN_OPERATOR, OF_A_BODY, OF_A_PATH, OF_A_HOOK, OF_A_MIGRATION
        ),
        summary="Ask a hook now; nothing is stopped by it",
    )
    @needs(Access.ADMIN)
    async def run_hook(
        name: HookName, body: Annotated[TryRequest, Body(openapi_examples=EXAMPLES)]
    ) -> Response:
        return json_response(hook_json(await hooks.try_once(name, body.migration)))

    return routes


def _hook_json(hook: Hook, always: Sequence[str]) -> dict[str, Any]:
    return {
        "name": hook.name,
        "kind": hook.kind,
        "description": hook.told,
        "when": [moment.value for moment in Moment if moment in hook.moments],
        "always": hook.name in always,
        "required": hook.required,
        "timeout_s": hook.timeout_s,
        "interval_s": hook.interval_s if Moment.DURING in hook.moments else None,
    }
