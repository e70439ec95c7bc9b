"""What a migration would meet: a collection looked at, and a move priced. Nothing is written."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response
from fastapi.openapi.models import Example
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr

from plimsoll.api.edge.access import Access, needs
from plimsoll.api.edge.body import permit_of
from plimsoll.api.edge.documented import (
    OF_A_BODY,
    OF_A_COLLECTION,
    OF_A_MODEL,
    OF_A_PATH,
    OF_A_QUEUE,
    OF_AN_OPERATOR,
    documented,
)
from plimsoll.api.edge.json_body import StrictJSONRoute
from plimsoll.api.edge.refusals import NATIVE
from plimsoll.api.fields import CollectionName, Dimensions, OrDefault, SpaceFields
from plimsoll.api.migration_fields import BridgeFiguresFields
from plimsoll.api.replies import json_response
from plimsoll.corpora.spaces import space_json
from plimsoll.migration.bridge_trial import BridgeTrial
from plimsoll.migration.survey import CollectionSurvey, DoctorReport, MigrationPlan, VersionReport


class PlanRequest(BaseModel):
    """Which model a collection would move to."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[StrictStr, Field(description="As GET /v1/models lists it.")]
    dimensions: Annotated[
        Dimensions | None,
        Field(description="Values a vector; null: all of the model's."),
    ] = None
    bridge: Annotated[
        OrDefault[StrictBool],
        Field(description="true: embed up to 2000 documents, and say what a bridge is worth."),
    ] = False


class VersionReportFields(SpaceFields):
    """Vectors of one space, and whether a sample embedded again gives what is stored."""

    active: bool
    vectors: int
    not_finite: int
    zero: int
    not_unit: Annotated[int, Field(description="Of another length than 1.")]
    repeated: Annotated[int, Field(description="Equal to one before them, bit by bit.")]
    least_norm: float | None
    greatest_norm: float | None
    embedded_again: Annotated[int, Field(description="0: no model here gives such vectors.")]
    equal_again: int
    least_cosine: float | None
    looks_like: Annotated[str | None, Field(description="Another served model.")]


class DoctorResponse(BaseModel):
    """What is in a collection."""

    collection: str
    documents: int
    without_text: int
    repeated_texts: int
    versions: list[VersionReportFields]
    blocking: list[str]
    warnings: list[str]


class BridgeTrialFields(BaseModel):
    """What a bridge would be worth, and take."""

    figures: BridgeFiguresFields | None
    reason: Annotated[str | None, Field(description="Why it would be refused; null: it would not.")]
    documents: Annotated[int, Field(description="That would be bridged.")]
    embed_s: Annotated[float, Field(description="Of the sample; a run does not embed it twice.")]
    apply_s: Annotated[float, Field(description="That bridging would take.")]


class PlanResponse(BaseModel):
    """What a move would take."""

    collection: str
    source: SpaceFields
    target: SpaceFields
    documents: int
    counted: Annotated[int, Field(description="Documents whose tokens were counted exactly.")]
    tokens: int
    tokens_error: Annotated[int, Field(description="Standard error of `tokens`.")]
    tokens_per_s: Annotated[float, Field(description="Measured on a sample, just now.")]
    seconds: float
    disk_bytes: int
    warnings: list[str]
    bridge: Annotated[
        BridgeTrialFields | None, Field(description="null where it was not asked for.")
    ]


PLAN_EXAMPLES: dict[str, Example] = {
    "default": {
        "summary": "A move",
        "value": {"model": "all-MiniLM-L6-v2"},
    }
}


def router(survey: CollectionSurvey) -> APIRouter:
    """The routes over the use case."""
    routes = APIRouter(route_class=StrictJSONRoute, tags=["migrations"])

    @routes.get(
        "/collections/{name}/doctor",
        response_model=DoctorResponse,
        responses=documented(
            NATIVE, OF_AN_OPERATOR, OF_A_PATH, OF_A_MODEL, OF_A_COLLECTION, OF_A_QUEUE
        ),
        summary="Look at a collection before a migration",
    )
    @needs(Access.ADMIN)
    async def examine_collection(name: CollectionName, request: Request) -> Response:
        return json_response(_report(await survey.doctor(name, permit_of(request))))

    @routes.post(
        "/collections/{name}/plan",
        response_model=PlanResponse,
        responses=documented(NATIVE, OF_AN_OPERATOR, OF_A_BODY, OF_A_MODEL, OF_A_COLLECTION),
        summary="What a migration would take",
    )
    @needs(Access.ADMIN)
    async def plan_migration(
        name: CollectionName,
        body: Annotated[PlanRequest, Body(openapi_examples=PLAN_EXAMPLES)],
        request: Request,
    ) -> Response:
        plan = await survey.plan(
            name, body.model, body.dimensions, permit_of(request), tries_bridge=body.bridge
        )
        return json_response(_plan(plan))

    return routes


def _report(report: DoctorReport) -> dict[str, Any]:
    return {
        "collection": report.collection.name,
        "documents": report.n_documents,
        "without_text": report.n_without_text,
        "repeated_texts": report.n_repeated_texts,
        "versions": [*map(_version, report.versions)],
        "blocking": report.blocking,
        "warnings": report.warnings,
    }


def _version(report: VersionReport) -> dict[str, Any]:
    health = report.health
    return {
        **space_json(report.version.space),
        "active": report.is_active,
        "vectors": health.n_vectors,
        "not_finite": health.n_not_finite,
        "zero": health.n_zero,
        "not_unit": health.n_not_unit,
        "repeated": health.n_repeated,
        "least_norm": health.least_norm,
        "greatest_norm": health.greatest_norm,
        "embedded_again": report.n_again,
        "equal_again": report.n_equal,
        "least_cosine": report.least_cosine,
        "looks_like": report.looks_like,
    }


def _plan(plan: MigrationPlan) -> dict[str, Any]:
    return {
        "collection": plan.collection,
        "source": space_json(plan.source),
        "target": space_json(plan.target),
        "documents": plan.n_documents,
        "counted": plan.n_counted,
        "tokens": plan.n_tokens,
        "tokens_error": plan.tokens_error,
        "tokens_per_s": plan.tokens_per_s,
        "seconds": plan.seconds,
        "disk_bytes": plan.disk_bytes,
        "warnings": plan.warnings,
        "bridge": None if plan.bridge is None else _trial(plan.bridge),
    }


def _trial(trial: BridgeTrial) -> dict[str, Any]:
    return {
        "figures": None if trial.figures is None else trial.figures.as_json(),
        "reason": trial.reason,
        "documents": trial.n_documents,
        "embed_s": trial.embed_s,
        "apply_s": trial.apply_s,
    }
