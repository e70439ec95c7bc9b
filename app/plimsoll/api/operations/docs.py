"""/docs: the OpenAPI document in a browser, by Swagger UI from the package's own files."""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Path, Response

from plimsoll.api.edge.access import Access, needs
from plimsoll.api.operations.page_files import PageFiles
from plimsoll.api.replies import json_response

PAGE = "docs.html"


def router(document: Callable[[], dict[str, Any]]) -> APIRouter:
    """The page and its parts, which hold no data and need no key, and the document, which does."""
    routes = APIRouter(include_in_schema=False)
    # Swagger UI's icons are in its style sheet.
    parts = PageFiles("docs", images="'self' data:")

    @routes.get("/openapi.json")
    async def openapi() -> Response:
        return json_response(document())

    @routes.get("/docs")
    @needs(Access.OPEN)
    async def page() -> Response:
        return parts.response(PAGE)

    @routes.get("/docs/{name}")
    @routes.get("/docs/docs/{name}")  # of a page that was asked for with a slash at its end
    @needs(Access.OPEN)
    async def page_part(name: Annotated[str, Path()]) -> Response:
        return parts.response(name)

    return routes
