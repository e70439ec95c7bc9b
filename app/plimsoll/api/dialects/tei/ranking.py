"""TEI's routes that compare: /rerank and /similarity.

The served models embed; none reads a query and a text together, as TEI's rerankers do. So texts
stand in the order of their cosines with the query. An order by words would look the same and mean
something else: under pressure it is refused, with the time to try again.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response

from plimsoll.api.dialects.tei.errors import BASE, ERRORS
from plimsoll.api.dialects.tei.examples import RERANK, SIMILARITY
from plimsoll.api.dialects.tei.fields import (
    CUT,
    SimilarityParameters,
    TEIRank,
    TEIRerankRequest,
    TEISimilarityRequest,
    check_number,
    input_type_of,
)
from plimsoll.api.dialects.tei.headers import TOOK, Stopwatch
from plimsoll.api.edge.body import permit_of
from plimsoll.api.edge.documented import (
    OF_A_BODY,
    OF_A_TEXT,
    OF_THE_DEFAULT_MODEL,
    documented,
)
from plimsoll.api.edge.json_body import StrictJSONRoute
from plimsoll.api.edge.json_rendering import LongList
from plimsoll.api.fields import PriorityHeader
from plimsoll.api.replies import ranking_response, similarities_response
from plimsoll.policy.costs import json_bytes
from plimsoll.serving.core import ServingCore
from plimsoll.serving.tasks import EmbedTask, Ranked, RankTask, raise_first


def router(core: ServingCore) -> APIRouter:
    """Routes over the use cases."""
    routes = APIRouter(prefix=BASE, route_class=StrictJSONRoute)
    answers = {
        200: {"headers": TOOK},
        **documented(ERRORS, OF_A_BODY, OF_THE_DEFAULT_MODEL, OF_A_TEXT),
    }

    @routes.post(
        "/rerank",
        response_model=list[TEIRank],
        response_description="Texts, best first.",
        responses=answers,
        summary="Order texts for a query, by the cosines of embeddings",
    )
    async def tei_rerank(
        body: Annotated[TEIRerankRequest, Body(openapi_examples=RERANK)],
        request: Request,
        priority: PriorityHeader = None,
    ) -> Response:
        watch = Stopwatch()
        check_number(len(body.texts), "texts")
        task = RankTask(
            body.query,
            body.texts,
            fallback="none",
            priority=priority,
            truncate=body.truncate,
            cut=CUT[body.truncation_direction],
            echoed_bytes=json_bytes(body.texts) if body.return_text else 0,
        )
        result = await core.ranking.rank(task, permit_of(request))
        raise_first(result.failures, lambda index: f"texts[{index}]", param="texts")
        return await ranking_response(
            request,
            result,
            lambda: LongList(_ranks(result.results, body)),
            watch.took(result.n_tokens),
        )

    @routes.post(
        "/similarity",
        response_model=list[float],
        response_description="The cosine of each sentence with the source.",
        responses=answers,
        summary="How alike texts are",
    )
    async def tei_similarity(
        body: Annotated[TEISimilarityRequest, Body(openapi_examples=SIMILARITY)],
        request: Request,
        priority: PriorityHeader = None,
    ) -> Response:
        watch = Stopwatch()
        texts, options = body.inputs, body.parameters or SimilarityParameters()
        check_number(len(texts.sentences), "sentences")
        task = EmbedTask(
            [texts.source_sentence, *texts.sentences],
            input_type_of(options.prompt_name),
            truncate=options.truncate,
            priority=priority,
            cut=CUT[options.truncation_direction],
        )
        result = await core.service.embed_dense(task, permit_of(request))
        raise_first(result.failures, _place_of, param="inputs")
        scores = await core.ranking.similarities(result)
        headers = watch.took(result.n_tokens)
        return await similarities_response(request, scores, result.n_tokens, headers)

    return routes


def _place_of(index: int) -> str:
    return f"sentences[{index - 1}]" if index else "source_sentence"


def _ranks(ranked: Sequence[Ranked], body: TEIRerankRequest) -> Iterator[dict[str, Any]]:
    for each in ranked:
        score = each.score if body.raw_scores else min(1.0, max(0.0, (1 + each.score) / 2))
        text = {"text": body.texts[each.index]} if body.return_text else {}
        yield {"index": each.index, **text, "score": score}
