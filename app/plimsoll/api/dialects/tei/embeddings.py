"""TEI's routes that embed: at the base itself, /embed, /embed_all, /embed_sparse, and /embeddings
with /v1 or without.

None of them ever answers with words in place of a vector: what cannot be embedded now is refused
with 429 or 503 and the time to try again. Sparse vectors are BM25's, for the model is none that
makes any.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response
from orjson import Fragment

from plimsoll.api.dialects.tei.errors import BASE, ERRORS, OPENAI_ERRORS
from plimsoll.api.dialects.tei.examples import EMBED, EMBED_ALL, EMBED_SPARSE, OPENAI
from plimsoll.api.dialects.tei.fields import (
    CUT,
    SparseValue,
    TEIEmbedAllRequest,
    TEIEmbedRequest,
    TEIEmbedSparseRequest,
    TEIOpenAIRequest,
    TEIOpenAIResponse,
    input_type_of,
    listed,
)
from plimsoll.api.dialects.tei.headers import TOOK, Stopwatch
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
from plimsoll.api.fields import Encoding, PriorityHeader
from plimsoll.api.replies import VECTOR_HEADERS, embeddings_response, sparse_response
from plimsoll.api.vector_encodings import vector_field
from plimsoll.errors import TokenIdsError, UnknownModelError
from plimsoll.policy.costs import SPARSE_RECORD_BYTES
from plimsoll.serving.core import ServingCore
from plimsoll.serving.tasks import Embeddings, EmbedTask, SparseEmbeddings, raise_first

REFUSED = (OF_A_BODY, OF_THE_DEFAULT_MODEL, OF_A_TEXT, OF_TOKEN_IDS)


def router(core: ServingCore) -> APIRouter:
    """Routes over the use cases."""
    routes = APIRouter(prefix=BASE, route_class=StrictJSONRoute)

    async def embedded(task: EmbedTask, request: Request, field: str) -> Embeddings:
        result = await core.service.embed_dense(task, permit_of(request))
        # This dialect has no errors per text.
        raise_first(result.failures, lambda index: f"{field}[{index}]", param=field)
        return result

    async def embed_inputs(
        body: TEIEmbedRequest, request: Request, priority: PriorityHeader
    ) -> Response:
        watch = Stopwatch()
        inputs = listed(body.inputs, "inputs")
        task = EmbedTask(
            await core.tokens.texts_of(inputs, permit_of(request)),
            input_type_of(body.prompt_name),
            body.dimensions,
            body.truncate,
            priority=priority,
            form="unit" if body.normalize else "pooled",
            cut=CUT[body.truncation_direction],
        )
        result = await embedded(task, request, "inputs")
        return await embeddings_response(
            request, result, lambda: LongList(result.vectors), watch.took_for(result)
        )

    headers: dict[int | str, dict[str, Any]] = {200: {"headers": {**TOOK, **VECTOR_HEADERS}}}
    answers = {**headers, **documented(ERRORS, *REFUSED)}
    of_vectors: dict[str, Any] = {
        "response_model": list[list[float]],
        "response_description": "A vector for each text.",
        "responses": answers,
    }

    @routes.post("/embed", summary="Embed texts, as TEI does", **of_vectors)
    async def tei_embed(
        body: Annotated[TEIEmbedRequest, Body(openapi_examples=EMBED)],
        request: Request,
        priority: PriorityHeader = None,
    ) -> Response:
        return await embed_inputs(body, request, priority)

    @routes.post("", summary="The same, where Hugging Face's own clients ask for it", **of_vectors)
    async def tei_embed_at_base(
        body: Annotated[TEIEmbedRequest, Body(openapi_examples=EMBED)],
        request: Request,
        priority: PriorityHeader = None,
    ) -> Response:
        return await embed_inputs(body, request, priority)

    @routes.post(
        "/embed_all",
        response_model=list[list[list[float]]],
        response_description="For each text a vector of each of its tokens.",
        responses=answers,
        summary="States of all tokens, not pooled",
    )
    async def tei_embed_all(
        body: Annotated[TEIEmbedAllRequest, Body(openapi_examples=EMBED_ALL)],
        request: Request,
        priority: PriorityHeader = None,
    ) -> Response:
        watch = Stopwatch()
        inputs = listed(body.inputs, "inputs")
        task = EmbedTask(
            await core.tokens.texts_of(inputs, permit_of(request)),
            input_type_of(body.prompt_name),
            truncate=body.truncate,
            priority=priority,
            form="tokens",
            cut=CUT[body.truncation_direction],
        )
        result = await embedded(task, request, "inputs")
        return await embeddings_response(
            request,
            result,
            # A text's states are as long as a list of vectors.
            lambda: LongList(
                Fragment(render_json(LongList(rows))) for rows in result.vectors if rows is not None
            ),
            watch.took_for(result),
        )

    @routes.post(
        "/embed_sparse",
        response_model=list[list[SparseValue]],
        response_description="For each text its words by number, ascending.",
        responses={200: {"headers": TOOK}, **documented(ERRORS, *REFUSED)},
        summary="Sparse vectors of words, by BM25",
    )
    async def tei_embed_sparse(
        body: Annotated[TEIEmbedSparseRequest, Body(openapi_examples=EMBED_SPARSE)],
        request: Request,
    ) -> Response:
        watch = Stopwatch()
        inputs = listed(body.inputs, "inputs")
        texts = await core.tokens.texts_of(inputs, permit_of(request))
        task = EmbedTask(texts, input_type_of(body.prompt_name))
        result = await core.service.embed_sparse(
            task, permit_of(request), term_bytes=SPARSE_RECORD_BYTES
        )
        return await sparse_response(request, result, lambda: _sparse(result), watch.took(0))

    async def in_openais_shape(
        body: TEIOpenAIRequest, request: Request, priority: PriorityHeader
    ) -> Response:
        watch = Stopwatch()
        task = EmbedTask(
            _plain(listed(body.input, "input")),
            dimensions=body.dimensions,
            model=_served(body.model, core.models.find),
            priority=priority,
        )
        result = await embedded(task, request, "input")
        return await embeddings_response(
            request,
            result,
            lambda: _openai(result, body.encoding_format),
            watch.took_for(result),
        )

    of_openais_shape: dict[str, Any] = {
        "response_model": TEIOpenAIResponse,
        "response_description": "A vector for each text.",
        "responses": {**headers, **documented(OPENAI_ERRORS, *REFUSED)},
    }

    @routes.post(
        "/v1/embeddings", summary="Embed texts, in OpenAI's shape as TEI has it", **of_openais_shape
    )
    async def tei_create_embeddings(
        body: Annotated[TEIOpenAIRequest, Body(openapi_examples=OPENAI)],
        request: Request,
        priority: PriorityHeader = None,
    ) -> Response:
        return await in_openais_shape(body, request, priority)

    @routes.post(
        "/embeddings",
        summary="The same for a client whose address lacks /v1",
        **of_openais_shape,
    )
    async def tei_create_embeddings_without_version(
        body: Annotated[TEIOpenAIRequest, Body(openapi_examples=OPENAI)],
        request: Request,
        priority: PriorityHeader = None,
    ) -> Response:
        return await in_openais_shape(body, request, priority)

    return routes


def _plain(inputs: Sequence[str | Sequence[int]]) -> list[str]:
    """Texts alone: ids that come here are those of OpenAI's tokenizer."""
    texts = [each for each in inputs if isinstance(each, str)]
    if len(texts) < len(inputs):
        raise TokenIdsError(
            "input holds token ids, which may come from another model's tokenizer; send texts "
            "(langchain-openai: check_embedding_ctx_length=False)",
            param="input",
        )
    return texts


def _served(name: str | None, find: Callable[[str], object]) -> str | None:
    """The name where it is a served model's. TEI, which has one model, looks at none."""
    if name is None:
        return None
    try:
        find(name)
    except UnknownModelError:
        return None
    return name


def _sparse(result: SparseEmbeddings) -> LongList:
    return LongList(
        Fragment(
            render_json(
                LongList(
                    {"index": index, "value": value}
                    for index, value in zip(vector.indices, vector.values, strict=True)
                )
            )
        )
        for vector in result.vectors
    )


def _openai(result: Embeddings, encoding: Encoding) -> dict[str, Any]:
    rows = [vector for vector in result.vectors if vector is not None]
    return {
        "object": "list",
        "data": LongList(
            {"object": "embedding", "embedding": vector_field(row, encoding), "index": index}
            for index, row in enumerate(rows)
        ),
        "model": result.traits.name,
        "usage": {"prompt_tokens": result.n_tokens, "total_tokens": result.n_tokens},
    }
