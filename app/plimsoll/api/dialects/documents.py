"""Documents of a collection: sent as JSON lines, read and deleted one by one."""

from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Path, Query, Request, Response
from orjson import Fragment
from pydantic import (
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    FiniteFloat,
    StrictStr,
    ValidationError,
)
from pydantic.json_schema import SkipJsonSchema

from plimsoll.api.edge.access import Access, needs
from plimsoll.api.edge.body import permit_of
from plimsoll.api.edge.documented import (
    OF_A_BODY,
    OF_A_CLIENT,
    OF_A_COLLECTION,
    OF_A_DOCUMENT,
    OF_A_MIRROR,
    OF_A_MODEL,
    OF_A_PATH,
    OF_A_QUEUE,
    OF_A_SPACE,
    OF_AN_OPERATOR,
    OF_DOCUMENTS,
    documented,
)
from plimsoll.api.edge.errors import code_of
from plimsoll.api.edge.json_body import MAX_FIELDS
from plimsoll.api.edge.json_lines import JSONLine, json_lines
from plimsoll.api.edge.json_rendering import LongList
from plimsoll.api.edge.refusals import NATIVE
from plimsoll.api.fields import MOST_RESULTS, CollectionName, OrDefault
from plimsoll.api.replies import documents_response, json_response, listing_response
from plimsoll.corpora.catalog import CollectionCatalog
from plimsoll.corpora.ingest import DocumentIngest
from plimsoll.corpora.listing import DocumentPage
from plimsoll.corpora.records import MOST_DIMENSIONS, Document, StoredDocument
from plimsoll.corpora.tasks import LineFailure, NewDocument
from plimsoll.errors import PlimsollError
from plimsoll.mistakes import first_mistake, told

MOST_ID_CHARACTERS = 512
MOST_ROW = 2**63 - 1

DocumentId = Annotated[
    StrictStr,
    # A slash at a path's end changes nothing, so an id that ends in one could not be asked for.
    Field(max_length=MOST_ID_CHARACTERS, pattern=r"^[^\x00-\x1f\x7f]*[^\x00-\x1f\x7f/]$"),
]


DocumentInPath = Annotated[DocumentId, Path(openapi_examples={"sent": {"value": "load-line"}})]


class DocumentLine(BaseModel):
    """One line of what is sent."""

    model_config = ConfigDict(extra="forbid")

    id: Annotated[DocumentId, Field(description="Your own name for it, within its collection.")]
    text: StrictStr
    metadata: Annotated[
        OrDefault[dict[str, Any]], Field(description="What searches may filter by.")
    ] = {}
    vector: Annotated[
        list[FiniteFloat] | None,
        FailFast(),
        Field(
            max_length=MOST_DIMENSIONS,
            description="Its vector, where you have it already; `space` of the request says of "
            "which space.",
        ),
    ] = None


class DocumentFields(BaseModel):
    """A document as it is stored."""

    id: str
    text: str
    metadata: dict[str, Any]


class ListedDocument(DocumentFields):
    """A document with its vector, where that was asked for."""

    vector: Annotated[
        list[float] | None, Field(description="null: not asked for, or there is none.")
    ]


class DocumentList(BaseModel):
    """A page of documents in the order in which they came; `version` to `dimensions` are of their
    vectors.
    """

    documents: list[ListedDocument]
    after: Annotated[
        int | None, Field(description="Ask for the next page with it; null: this is the last.")
    ]
    version: int
    model: Annotated[str | None, Field(description="null: a foreign space.")]
    fingerprint: str
    dimensions: int


class LineError(BaseModel):
    """Why a line has not become a document."""

    line: Annotated[int, Field(description="From 1.")]
    id: str | None
    code: str
    message: str


class IngestResponse(BaseModel):
    """What became of the lines; every number counts documents but `n_tokens`."""

    added: int
    updated: int
    unchanged: Annotated[
        int, Field(description="Stored already, and neither embedded nor written.")
    ]
    failed: int
    truncated: Annotated[int, Field(description="Of which only the beginning is in the vector.")]
    n_tokens: int
    errors: Annotated[list[LineError], Field(description="Of the first thousand that failed.")]


# FastAPI would read the body whole; this is what the document says of it instead.
LINES_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "A document a line, in any number. A line that is wrong fails alone.",
        "content": {
            "application/json": {
                "schema": DocumentLine.model_json_schema(),
                "examples": {
                    "one": {
                        "summary": "One document",
                        "value": {
                            "id": "load-line",
                            "text": "The Plimsoll line shows how deep a ship may be loaded.",
                            "metadata": {"year": 1876},
                        },
                    }
                },
            }
        },
    }
}


def router(catalog: CollectionCatalog, ingest: DocumentIngest) -> APIRouter:
    """The routes over the use cases."""
    routes = APIRouter(tags=["collections"])

    @routes.post(
        "/collections/{name}/documents",
        response_model=IngestResponse,
        response_description="What became of each line.",
        responses=documented(
            NATIVE,
            OF_AN_OPERATOR,
            OF_A_BODY,
            OF_A_MODEL,
            OF_A_COLLECTION,
            OF_A_SPACE,
            OF_A_MIRROR,
            OF_DOCUMENTS,
        ),
        summary="Add or change documents",
        openapi_extra=LINES_BODY,
    )
    @needs(Access.ADMIN)
    async def put_documents(
        request: Request,
        name: CollectionName,
        space: Annotated[
            str | None,
            Query(
                description="Of the vectors that come along: their fingerprint, or the name of a "
                "foreign space."
            ),
        ] = None,
    ) -> Response:
        try:
            result = await ingest.put(name, _documents(request, space is not None), space)
        except PlimsollError:
            request.state.incoming.refuse()  # what the client still sends
            raise
        return documents_response(request, result)

    @routes.get(
        "/collections/{name}/documents",
        response_model=DocumentList,
        responses=documented(NATIVE, OF_A_CLIENT, OF_A_PATH, OF_A_QUEUE, OF_A_COLLECTION),
        summary="Documents, page after page",
    )
    async def list_documents(
        request: Request,
        name: CollectionName,
        after: Annotated[
            int, Query(ge=0, le=MOST_ROW, description="As the page before has it; 0: the first.")
        ] = 0,
        limit: Annotated[
            int, Query(ge=1, le=MOST_RESULTS, description="So many at most; a page may be shorter.")
        ] = 100,
        vectors: Annotated[bool, Query(description="Vectors along with the documents.")] = False,
        version: Annotated[
            int | SkipJsonSchema[None],
            Query(ge=1, le=MOST_ROW, description="Of the vectors; missing: what searches read."),
        ] = None,
    ) -> Response:
        page = await catalog.page(
            name,
            permit_of(request),
            after=after,
            most=limit,
            version=version,
            has_vectors=vectors,
        )
        return await listing_response(request, page, lambda: _listed(page))

    @routes.get(
        "/collections/{name}/documents/{id:path}",
        response_model=DocumentFields,
        responses=documented(NATIVE, OF_A_CLIENT, OF_A_PATH, OF_A_DOCUMENT),
        summary="A document",
    )
    async def get_document(name: CollectionName, id: DocumentInPath) -> Response:
        return json_response(_rendered(await catalog.document(name, id)))

    @routes.delete(
        "/collections/{name}/documents/{id:path}",
        response_model=DocumentFields,
        responses=documented(NATIVE, OF_AN_OPERATOR, OF_A_PATH, OF_A_DOCUMENT, OF_A_MIRROR),
        summary="Delete a document",
        response_description="What it was.",
    )
    @needs(Access.ADMIN)
    async def delete_document(name: CollectionName, id: DocumentInPath) -> Response:
        return json_response(_rendered(await catalog.delete_document(name, id)))

    return routes


async def _documents(request: Request, has_space: bool) -> AsyncIterator[NewDocument | LineFailure]:
    async for line in json_lines(request):
        yield _document(line, has_space)


def _document(line: JSONLine, has_space: bool) -> NewDocument | LineFailure:
    if line.error is not None:
        return LineFailure(line.number, None, code_of(line.error), str(line.error))
    if isinstance(line.value, dict) and len(line.value) > MAX_FIELDS:  # each would be an error
        message = f"the line has more than {MAX_FIELDS} fields"
        return LineFailure(line.number, _id_of(line.value), "invalid_request", message)
    try:
        fields = DocumentLine.model_validate(line.value)
    except ValidationError as error:
        message = told(first_mistake(error), at="the line")
        return LineFailure(line.number, _id_of(line.value), "invalid_request", message)
    document = Document(fields.id, fields.text, fields.metadata)
    if fields.vector is None:
        return NewDocument(line.number, document, n_bytes=line.parsed_bytes)
    if not has_space:
        message = "name the space of the vectors in the request: ?space="
        return LineFailure(line.number, fields.id, "invalid_vector", message)
    with np.errstate(over="ignore"):
        vector = np.array(fields.vector, np.float32)
    if not np.isfinite(vector).all():
        message = "the vector has a value that float32 does not hold"
        return LineFailure(line.number, fields.id, "invalid_vector", message)
    return NewDocument(line.number, document, vector, line.parsed_bytes)


def _id_of(value: object) -> str | None:
    """What a line that is no document calls itself, if that is short enough to be told back."""
    given = value.get("id") if isinstance(value, dict) else None
    return given if isinstance(given, str) and len(given) <= MOST_ID_CHARACTERS else None


def _listed(page: DocumentPage) -> Mapping[str, Any]:
    space = page.version.space
    return {
        "documents": LongList(
            {**_rendered(document), "vector": page.vectors.get(document.row)}
            for document in page.documents
        ),
        "after": page.after,
        "version": page.version.id,
        "model": space.model,
        "fingerprint": space.fingerprint,
        "dimensions": space.dimensions,
    }


def _rendered(document: StoredDocument) -> Mapping[str, Any]:
    return {"id": document.id, "text": document.text, "metadata": Fragment(document.metadata_json)}
