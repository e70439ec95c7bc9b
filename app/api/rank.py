"""POST /rank: put documents in order for a query, by meaning or, under pressure, by words."""

from typing import Annotated, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

from app.api.boundary import (
    DegradedAnswer,
    StrictJSONRoute,
    Texts,
    Truncated,
    ranking_response,
    releases_of,
)
from app.serving.ranking import RankingService
from app.serving.tasks import RankTask


class RankRequest(BaseModel):
    """A query and the documents to put in order for it."""

    model_config = ConfigDict(extra="forbid")

    query: StrictStr
    documents: Annotated[Texts, Field(description="A list of any length.")]
    top_k: Annotated[
        StrictInt | None, Field(ge=1, description="Return so many, the best; null: all.")
    ] = None
    model: Annotated[StrictStr | None, Field(description="As GET /v1/models lists it.")] = None
    fallback: Annotated[
        Literal["bm25", "none"],
        Field(description="Under pressure, rank by words and say so; none: 503 instead."),
    ] = "bm25"


class RankedDocument(BaseModel):
    """A document by its place in the list that was sent."""

    index: int
    score: float


class RankResponse(BaseModel):
    """Documents, best first; scores compare within one answer only."""

    kind: Annotated[
        Literal["dense", "bm25"],
        Field(description="dense: cosines of embeddings; bm25: BM25Okapi over words."),
    ]
    fingerprint: str | None
    results: list[RankedDocument]
    truncated: Annotated[
        list[Truncated], Field(description="Documents of which only the beginning counts.")
    ]
    warnings: list[str]
    degraded: DegradedAnswer | None


def router(service: RankingService) -> APIRouter:
    """The route over the use case."""
    routes = APIRouter(route_class=StrictJSONRoute, tags=["ranking"])

    @routes.post("/rank", response_model=RankResponse, summary="Order documents for a query")
    async def rank(body: RankRequest, request: Request) -> Response:
        task = RankTask(body.query, body.documents, body.top_k, body.model, body.fallback)
        result = await service.rank(task, releases_of(request))
        return ranking_response(
            request,
            result,
            lambda: {
                "kind": result.kind,
                "fingerprint": result.fingerprint,
                "results": result.results,
                "truncated": result.truncated,
                "warnings": result.warnings,
                "degraded": result.degraded,
            },
        )

    return routes
