"""POST /rank: put documents in order for a query, by meaning or, under pressure, by words."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response
from fastapi.openapi.models import Example
from pydantic import BaseModel, ConfigDict, Field, StrictStr

from plimsoll.api.edge.body import permit_of
from plimsoll.api.edge.documented import OF_A_BODY, OF_A_MODEL, OF_A_TEXT, documented
from plimsoll.api.edge.json_body import StrictJSONRoute
from plimsoll.api.edge.json_rendering import LongList
from plimsoll.api.edge.refusals import NATIVE
from plimsoll.api.fields import (
    Count,
    DegradedAnswer,
    OrDefault,
    PriorityHeader,
    TextError,
    Texts,
    Truncated,
)
from plimsoll.api.replies import DEGRADED_HEADERS, ranking_response
from plimsoll.serving.ranking import RankingService
from plimsoll.serving.tasks import Encoder, Fallback, Ranking, RankTask


class RankRequest(BaseModel):
    """A query and the documents to put in order for it."""

    model_config = ConfigDict(extra="forbid")

    query: StrictStr
    documents: Annotated[Texts, Field(description="A list of any length.")]
    top_k: Annotated[Count | None, Field(description="Return so many, the best; null: all.")] = None
    model: Annotated[StrictStr | None, Field(description="As GET /v1/models lists it.")] = None
    fallback: Annotated[
        OrDefault[Fallback],
        Field(description="Under pressure, rank by words and say so; none: 503 instead."),
    ] = "bm25"


class RankedDocument(BaseModel):
    """A document by its place in the list that was sent."""

    index: int
    score: float


class RankResponse(BaseModel):
    """Documents, best first; scores compare within one answer only."""

    kind: Annotated[
        Encoder,
        Field(description="dense: cosines of embeddings; bm25: BM25Okapi over words."),
    ]
    fingerprint: str | None
    results: list[RankedDocument]
    truncated: Annotated[
        list[Truncated], Field(description="Documents of which only the beginning counts.")
    ]
    errors: Annotated[
        list[TextError], Field(description="Documents that have no place among the results.")
    ]
    warnings: list[str]
    degraded: DegradedAnswer | None


EXAMPLES: dict[str, Example] = {
    "best": {
        "summary": "The best of three documents",
        "value": {
            "query": "How deep may a ship be loaded?",
            "documents": ["A mark on a hull", "The price of tea", "A load line"],
            "top_k": 1,
        },
    },
}


def router(service: RankingService) -> APIRouter:
    """The route over the use case."""
    routes = APIRouter(route_class=StrictJSONRoute, tags=["ranking"])

    @routes.post(
        "/rank",
        response_model=RankResponse,
        response_description="Documents, best first.",
        responses={
            200: {"headers": DEGRADED_HEADERS},
            **documented(NATIVE, OF_A_BODY, OF_A_MODEL, OF_A_TEXT),
        },
        summary="Order documents for a query",
    )
    async def rank(
        body: Annotated[RankRequest, Body(openapi_examples=EXAMPLES)],
        request: Request,
        priority: PriorityHeader = None,
    ) -> Response:
        task = RankTask(body.query, body.documents, body.top_k, body.model, body.fallback, priority)
        result = await service.rank(task, permit_of(request))
        return await ranking_response(request, result, lambda: _render(result))

    return routes


def _render(result: Ranking) -> dict[str, Any]:
    return {
        "kind": result.kind,
        "fingerprint": result.fingerprint,
        "results": LongList(result.results),
        "truncated": LongList(result.truncated),
        "errors": LongList(result.failures),
        "warnings": result.warnings,
        "degraded": result.degraded,
    }
