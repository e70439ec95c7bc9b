"""TEI's routes of tokens: /tokenize and /decode."""

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Body, Request, Response
from orjson import Fragment

from plimsoll.api.dialects.tei.errors import BASE, ERRORS
from plimsoll.api.dialects.tei.examples import DECODE, TOKENIZE
from plimsoll.api.dialects.tei.fields import (
    SimpleToken,
    TEIDecodeRequest,
    TEITokenizeRequest,
    check_number,
    input_type_of,
    listed,
)
from plimsoll.api.edge.body import permit_of
from plimsoll.api.edge.documented import (
    OF_A_BODY,
    OF_A_TEXT,
    OF_THE_DEFAULT_MODEL,
    OF_TOKEN_IDS,
    documented,
)
from plimsoll.api.edge.json_body import StrictJSONRoute
from plimsoll.api.edge.json_rendering import LongList, render_json
from plimsoll.api.replies import tokens_response
from plimsoll.serving.core import ServingCore
from plimsoll.serving.tokenizing import TextTokens


def router(core: ServingCore) -> APIRouter:
    """Routes over the use cases."""
    routes = APIRouter(prefix=BASE, route_class=StrictJSONRoute)

    @routes.post(
        "/tokenize",
        response_model=list[list[SimpleToken]],
        response_description="The tokens of each text.",
        responses=documented(ERRORS, OF_A_BODY, OF_THE_DEFAULT_MODEL, OF_A_TEXT),
        summary="Tokens of texts, and where each comes from",
    )
    async def tei_tokenize(
        body: Annotated[TEITokenizeRequest, Body(openapi_examples=TOKENIZE)], request: Request
    ) -> Response:
        texts = [each for each in listed(body.inputs, "inputs") if isinstance(each, str)]
        found = await core.tokens.spans(
            texts,
            input_type_of(body.prompt_name),
            permit_of(request),
            with_ends=body.add_special_tokens,
        )
        n_tokens = sum(map(len, found))
        return await tokens_response(
            request, len(texts), n_tokens, lambda: LongList(map(_tokens, found))
        )

    @routes.post(
        "/decode",
        response_model=list[str],
        response_description="A text for each list of ids.",
        responses=documented(ERRORS, OF_A_BODY, OF_THE_DEFAULT_MODEL, OF_A_TEXT, OF_TOKEN_IDS),
        summary="Texts of ids of tokens",
    )
    async def tei_decode(
        body: Annotated[TEIDecodeRequest, Body(openapi_examples=DECODE)], request: Request
    ) -> Response:
        ids = _lists(body.ids)
        check_number(len(ids), "ids")
        texts = await core.tokens.decode(
            ids, permit_of(request), skips_special=body.skip_special_tokens
        )
        n_tokens = sum(map(len, ids))
        return await tokens_response(request, len(texts), n_tokens, lambda: LongList(texts))

    return routes


def _lists(ids: Sequence[int] | Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """Ids of one text as a list of themselves; lists as they are."""
    lists = [each for each in ids if not isinstance(each, int)]
    numbers = [each for each in ids if isinstance(each, int)]
    return [numbers] if numbers else lists


def _tokens(spans: TextTokens) -> Fragment:
    """The tokens of a text as JSON already: it may have millions."""
    records = (
        {"id": each.id, "text": each.text, "special": each.is_special}
        | {"start": each.start, "stop": each.stop}
        for each in spans
    )
    return Fragment(render_json(LongList(records)))
