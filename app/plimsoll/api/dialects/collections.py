"""Collections: made, listed, dropped and searched."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response
from fastapi.openapi.models import Example
from orjson import Fragment
from pydantic import BaseModel, ConfigDict, Field, StrictStr

from plimsoll.api.edge.access import Access, needs
from plimsoll.api.edge.body import permit_of
from plimsoll.api.edge.documented import (
    OF_A_BODY,
    OF_A_CLIENT,
    OF_A_COLLECTION,
    OF_A_CONFLICT,
    OF_A_MIRROR,
    OF_A_MODEL,
    OF_A_PATH,
    OF_A_SEARCH,
    OF_A_SPACE,
    OF_A_TEXT,
    OF_AN_OPERATOR,
    OF_THE_STORE,
    documented,
)
from plimsoll.api.edge.json_body import StrictJSONRoute
from plimsoll.api.edge.json_rendering import LongList
from plimsoll.api.edge.refusals import NATIVE
from plimsoll.api.fields import (
    CollectionName,
    Dimensions,
    OrDefault,
    PriorityHeader,
    ResultCount,
    SpaceFields,
)
from plimsoll.api.replies import DEGRADED_HEADERS, json_response, search_response
from plimsoll.corpora.catalog import CollectionCatalog
from plimsoll.corpora.records import VersionState
from plimsoll.corpora.search import CollectionSearch
from plimsoll.corpora.spaces import space_json
from plimsoll.corpora.tasks import AskedMode, CollectionState, SearchResults, SearchTask
from plimsoll.telemetry.corpora import SearchMode


class CollectionRequest(BaseModel):
    """What a collection's vectors are to be; what is left out fits any that is there."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[
        StrictStr | None, Field(description="As GET /v1/models lists it; null: the default.")
    ] = None
    dimensions: Annotated[
        Dimensions | None,
        Field(description="Values a vector; null: all of the model's."),
    ] = None
    space: Annotated[
        StrictStr | None,
        Field(
            min_length=1,
            max_length=128,
            description="In place of a model: your name for the space of vectors that are made "
            "elsewhere and sent along with every document.",
        ),
    ] = None


class VersionFields(SpaceFields):
    """Vectors of the collection's documents in one space."""

    id: int
    vectors: int
    state: VersionState
    active: Annotated[bool, Field(description="Searches read this one.")]
    takes_writes: Annotated[bool, Field(description="New documents get a vector of it.")]


class CollectionFields(SpaceFields):
    """A collection and what is in it; `model` to `dimensions` are those of the active version."""

    name: str
    documents: int
    created_at: str
    versions: list[VersionFields]


class CollectionList(BaseModel):
    """Every collection, by name."""

    collections: list[CollectionFields]


class SearchRequest(BaseModel):
    """What to look for."""

    model_config = ConfigDict(extra="forbid")

    query: StrictStr
    top_k: Annotated[
        OrDefault[ResultCount],
        Field(description="Return so many, the best."),
    ] = 10
    mode: Annotated[
        OrDefault[AskedMode],
        Field(
            description="auto: dense, or bm25 where the model cannot answer; hybrid: dense and "
            "bm25 joined by reciprocal rank fusion."
        ),
    ] = "auto"
    filter: Annotated[
        dict[str, Any] | None, Field(description="Conditions that a document's metadata must fit.")
    ] = None


class FoundDocument(BaseModel):
    """A document, and its score: more is better, within one answer only."""

    id: str
    score: float
    text: str
    metadata: dict[str, Any]


class SearchPartFields(SpaceFields):
    """A version that was compared, and how many documents it answered for."""

    version: int
    documents: Annotated[
        int, Field(description="Those it answers for, of those that the filter let through.")
    ]


class DegradedSearchFields(BaseModel):
    """Why words were searched instead; `retry_after_s` is null where waiting would not help."""

    reason: str
    message: str
    retry_after_s: float | None


class SearchResponse(BaseModel):
    """Documents, best first."""

    mode: Annotated[SearchMode, Field(description="How the search was answered.")]
    fingerprint: Annotated[
        str | None,
        Field(
            description="Of the vectors that were compared; null: none were, or those of several "
            "spaces, which `parts` has."
        ),
    ]
    parts: Annotated[
        list[SearchPartFields],
        Field(
            description="Versions that were compared; several while a progressive migration runs. "
            "Each answers for the documents that those before it have no vector of."
        ),
    ]
    results: list[FoundDocument]
    warnings: list[str]
    degraded: DegradedSearchFields | None


COLLECTION_EXAMPLES: dict[str, Example] = {
    "default": {"summary": "For vectors of the default model", "value": {}},
}
SEARCH_EXAMPLES: dict[str, Example] = {
    "meaning": {"summary": "By meaning", "value": {"query": "How deep may a ship be loaded?"}},
    "filtered": {
        "summary": "By words and meaning, among some",
        "value": {
            "query": "load line",
            "mode": "hybrid",
            "filter": {"year": {"$gte": 1870, "$lt": 1880}},
        },
    },
}


def router(catalog: CollectionCatalog, search: CollectionSearch) -> APIRouter:
    """The routes over the use cases."""
    routes = APIRouter(route_class=StrictJSONRoute, tags=["collections"])

    @routes.put(
        "/collections/{name}",
        response_model=CollectionFields,
        response_description="The collection as it now is.",
        responses=documented(
            NATIVE, OF_AN_OPERATOR, OF_A_BODY, OF_A_MODEL, OF_THE_STORE, OF_A_CONFLICT
        ),
        summary="Have a collection",
    )
    @needs(Access.ADMIN)
    async def put_collection(
        name: CollectionName,
        body: Annotated[CollectionRequest, Body(openapi_examples=COLLECTION_EXAMPLES)],
        request: Request,
    ) -> Response:
        state = await catalog.ensure(
            name,
            permit_of(request),
            model=body.model,
            dimensions=body.dimensions,
            foreign_space=body.space,
        )
        return json_response(_collection(state))

    @routes.get(
        "/collections",
        response_model=CollectionList,
        responses=documented(NATIVE, OF_A_CLIENT, OF_THE_STORE),
        summary="Every collection",
    )
    async def get_collections() -> Response:
        return json_response({"collections": [*map(_collection, await catalog.states())]})

    @routes.get(
        "/collections/{name}",
        response_model=CollectionFields,
        responses=documented(NATIVE, OF_A_CLIENT, OF_A_PATH, OF_A_COLLECTION),
        summary="A collection",
    )
    async def get_collection(name: CollectionName) -> Response:
        return json_response(_collection(await catalog.state(name)))

    @routes.delete(
        "/collections/{name}",
        response_model=CollectionFields,
        response_description="What it was.",
        responses=documented(NATIVE, OF_AN_OPERATOR, OF_A_PATH, OF_A_COLLECTION, OF_A_MIRROR),
        summary="Drop a collection with its documents",
    )
    @needs(Access.ADMIN)
    async def delete_collection(name: CollectionName) -> Response:
        return json_response(_collection(await catalog.drop(name)))

    @routes.post(
        "/collections/{name}/search",
        response_model=SearchResponse,
        response_description="Documents, best first.",
        responses={
            200: {"headers": DEGRADED_HEADERS},
            **documented(
                NATIVE,
                OF_A_CLIENT,
                OF_A_BODY,
                OF_A_MODEL,
                OF_A_TEXT,
                OF_A_COLLECTION,
                OF_A_SPACE,
                OF_A_SEARCH,
            ),
        },
        summary="Search a collection",
    )
    async def search_collection(
        name: CollectionName,
        body: Annotated[SearchRequest, Body(openapi_examples=SEARCH_EXAMPLES)],
        request: Request,
        priority: PriorityHeader = None,
    ) -> Response:
        task = SearchTask(name, body.query, body.top_k, body.mode, body.filter, priority)
        result = await search.search(task, permit_of(request))
        return await search_response(request, result, lambda: _found(result))

    return routes


def _collection(state: CollectionState) -> dict[str, Any]:
    collection = state.collection
    return {
        "name": collection.name,
        **space_json(collection.active.space),
        "documents": state.n_documents,
        "created_at": collection.created_at,
        "versions": [
            {
                "id": version.id,
                **space_json(version.space),
                "vectors": n_vectors,
                "state": version.state.value,
                "active": version.id == collection.active.id,
                "takes_writes": version.takes_writes,
            }
            for version, n_vectors in state.versions
        ],
    }


def _found(result: SearchResults) -> dict[str, Any]:
    return {
        "mode": result.mode,
        "fingerprint": result.fingerprint,
        "parts": [
            {
                **space_json(part.version.space),
                "version": part.version.id,
                "documents": part.n_documents,
            }
            for part in result.parts
        ],
        "results": LongList(
            {
                "id": found.document.id,
                "score": found.score,
                "text": found.document.text,
                "metadata": Fragment(found.document.metadata_json),
            }
            for found in result.results
        ),
        "warnings": result.warnings,
        "degraded": result.degraded,
    }
