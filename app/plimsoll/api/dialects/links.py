"""Links: tables and files elsewhere that collections mirror. They are only named here."""

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StrictBool

from plimsoll.api.edge.access import Access, needs
from plimsoll.api.edge.body import permit_of
from plimsoll.api.edge.documented import (
    OF_A_BODY,
    OF_A_CLIENT,
    OF_A_CONFLICT,
    OF_A_LINK,
    OF_A_MODEL,
    OF_A_PATH,
    OF_AN_OPERATOR,
    OF_AN_OUTSIDE,
    documented,
)
from plimsoll.api.edge.json_body import StrictJSONRoute
from plimsoll.api.edge.refusals import NATIVE
from plimsoll.api.fields import CollectionName, OrDefault
from plimsoll.api.replies import json_response
from plimsoll.links.links import Links, LinkStatus
from plimsoll.links.records import Survey


class LinkRequest(BaseModel):
    """Nothing but `{}`: where a link leads is the operator's configuration."""

    model_config = ConfigDict(extra="forbid")


class UnlinkRequest(LinkRequest):
    """Whether the outside is asked."""

    force: Annotated[
        OrDefault[StrictBool],
        Field(
            description="true: also where it does not answer, or is in no file of links any more; "
            "what is there then stays there."
        ),
    ] = False


class WaitingFields(BaseModel):
    """Vectors that are still to be brought out."""

    fingerprint: str
    vectors: int


class LinkFields(BaseModel):
    """A link as it is now; its collection has its name."""

    name: str
    kind: str
    pulled: Annotated[bool, Field(description="Whether there is a collection that mirrors it.")]
    following: Annotated[bool, Field(description="Whether changes are taken in as they come.")]
    pulling: Annotated[bool, Field(description="Whether every row is being read now.")]
    rows: Annotated[int, Field(description="Read by the pull under way, or by the last.")]
    documents: int
    waiting: list[WaitingFields]
    waits: Annotated[str | None, Field(description="Why nothing is done now; null: it goes on.")]


class LinkList(BaseModel):
    """Every link, by name."""

    links: list[LinkFields]


class FindingFields(BaseModel):
    """Something to know before a link is used."""

    message: str
    blocks: Annotated[bool, Field(description="It cannot be used like this.")]


class SurveyFields(BaseModel):
    """What is outside."""

    link: str
    where: str
    rows: int
    without_text: Annotated[int, Field(description="They become no document.")]
    without_vector: int
    dimensions: int | None
    active: Annotated[
        str | None, Field(description="Space of the vectors, as it is noted there; null: not yet.")
    ]
    changes: Annotated[int, Field(description="Noted there, and not taken in yet.")]
    findings: list[FindingFields]


def router(links: Links) -> APIRouter:
    """The routes over the use case."""
    routes = APIRouter(route_class=StrictJSONRoute, tags=["links"])

    @routes.get(
        "/links",
        response_model=LinkList,
        responses=documented(NATIVE, OF_A_CLIENT, OF_A_LINK),
        summary="Every link",
    )
    async def get_links() -> Response:
        return json_response({"links": [*map(_link, await links.statuses())]})

    @routes.get(
        "/links/{name}",
        response_model=LinkFields,
        responses=documented(NATIVE, OF_A_CLIENT, OF_A_PATH, OF_A_LINK),
        summary="A link",
    )
    async def get_link(name: CollectionName) -> Response:
        return json_response(_link(await links.status(name)))

    @routes.get(
        "/links/{name}/doctor",
        response_model=SurveyFields,
        responses=documented(NATIVE, OF_AN_OPERATOR, OF_A_PATH, OF_A_LINK, OF_AN_OUTSIDE),
        summary="Look at what a link leads to",
    )
    @needs(Access.ADMIN)
    async def examine_link(name: CollectionName) -> Response:
        return json_response(_survey(name, await links.survey(name)))

    @routes.post(
        "/links/{name}/pull",
        response_model=LinkFields,
        responses=documented(
            NATIVE, OF_AN_OPERATOR, OF_A_BODY, OF_A_MODEL, OF_A_LINK, OF_AN_OUTSIDE, OF_A_CONFLICT
        ),
        summary="Mirror a link in a collection of its name, and follow it",
    )
    @needs(Access.ADMIN)
    async def pull_link(name: CollectionName, body: LinkRequest, request: Request) -> Response:
        return json_response(_link(await links.pull(name, permit_of(request))))

    @routes.post(
        "/links/{name}/push",
        response_model=LinkFields,
        responses=documented(NATIVE, OF_AN_OPERATOR, OF_A_BODY, OF_A_LINK),
        summary="Bring every vector of a link's collection out once more",
    )
    @needs(Access.ADMIN)
    async def push_link(name: CollectionName, body: LinkRequest) -> Response:
        return json_response(_link(await links.push(name)))

    @routes.post(
        "/links/{name}/unlink",
        response_model=LinkList,
        responses=documented(NATIVE, OF_AN_OPERATOR, OF_A_BODY, OF_A_LINK, OF_AN_OUTSIDE),
        summary="Follow a link no more, and let its collection be one of its own",
        response_description="Every link that there is.",
    )
    @needs(Access.ADMIN)
    async def unlink(name: CollectionName, body: UnlinkRequest) -> Response:
        await links.unlink(name, force=body.force)
        return json_response({"links": [*map(_link, await links.statuses())]})

    return routes


def _link(status: LinkStatus) -> dict[str, Any]:
    now = status.state
    return {
        "name": status.name,
        "kind": status.kind,
        "pulled": now is not None,
        "following": now is not None and now.follows,
        "pulling": now is not None and now.is_pulling,
        "rows": 0 if now is None else now.n_pulled,
        "documents": status.n_documents,
        "waiting": [
            {"fingerprint": fingerprint, "vectors": n}
            for fingerprint, n in status.n_waiting.items()
        ],
        "waits": status.waits,
    }


def _survey(name: str, survey: Survey) -> dict[str, Any]:
    return {
        "link": name,
        "where": survey.where,
        "rows": survey.n_rows,
        "without_text": survey.n_without_text,
        "without_vector": survey.n_without_vector,
        "dimensions": survey.dimensions,
        "active": survey.active,
        "changes": survey.n_changes,
        "findings": [
            {"message": found.message, "blocks": found.blocks} for found in survey.findings
        ],
    }
