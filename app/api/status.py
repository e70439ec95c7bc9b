"""The status page, and the last minutes that it draws. Looks on; opens no model.

What is true now stands in `/health`, which the page asks too; `/status` has what has been.
"""

from importlib.resources import files
from typing import Annotated, Any

from fastapi import APIRouter, Path, Response
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException

from app.api.boundary import json_response
from app.api.recent import RecentRequests
from app.serving.watch import MemoryWatch

PAGE = "status.html"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml; charset=utf-8",
}
HEADERS = {
    # The page's own files and nothing else: no script of anybody, no frame around it.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # A server that was replaced must not be watched with its predecessor's page.
    "Cache-Control": "no-cache",
}


def router(watch: MemoryWatch, recent: RecentRequests) -> APIRouter:
    """The page, its parts and its numbers."""
    routes = APIRouter(tags=["operations"])
    parts = {
        file.name: (file.read_bytes(), MEDIA_TYPES[suffix])
        for file in files("app.api.pages").iterdir()
        if (suffix := f".{file.name.rpartition('.')[2]}") in MEDIA_TYPES
    }

    def part(name: str) -> Response:
        content, media_type = parts[name]
        return Response(content, headers=HEADERS, media_type=media_type)

    @routes.get("/", response_class=HTMLResponse, summary="The status page")
    async def page() -> Response:
        return part(PAGE)

    @routes.head("/", include_in_schema=False)  # how some clients ask whether anybody is there
    async def head() -> Response:
        return part(PAGE)

    @routes.get("/pages/{name}", include_in_schema=False)
    async def page_part(name: Annotated[str, Path()]) -> Response:
        if name not in parts:
            raise HTTPException(404)
        return part(name)

    @routes.get("/status", summary="The last minutes: memory, throughput, replies, errors")
    async def status() -> Response:
        return json_response(
            {
                "history": _columns(watch),
                "latency": recent.latency(),
                "requests": recent.counts,
                "errors": recent.errors,
            },
            headers={"Cache-Control": "no-store"},
        )

    return routes


def _columns(watch: MemoryWatch) -> dict[str, list[Any]]:
    """What each second's look found, the newest last and at 0 seconds ago."""
    looks = list(watch.history)
    newest_s = looks[-1].at_s if looks else 0.0
    return {
        "seconds_ago": [round(newest_s - look.at_s, 1) for look in looks],
        "used_bytes": [look.used_bytes for look in looks],
        "predicted_bytes": [look.predicted_bytes for look in looks],
        "tokens_per_s": [round(look.tokens_per_s, 1) for look in looks],
        "ladder_step": [look.step for look in looks],
    }
