"""OpenAI's dialect: POST /v1/embeddings and GET /v1/models, and where else clients look for them.

Clients ask for base64 by default and some of them read nothing else. Unknown fields are
ignored, as OpenAI's own server does with most. Token ids are refused unless the server is set to
take them: as a rule they are another tokenizer's. `input_type` and `truncate` may be sent besides.
Azure's client has the model's name in the path.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Body, Path, Request, Response

from plimsoll.api.edge.body import permit_of
from plimsoll.api.edge.documented import (
    OF_A_BODY,
    OF_A_CLIENT,
    OF_A_MODEL,
    OF_A_MODEL_NAME,
    OF_A_TEXT,
    documented,
)
from plimsoll.api.edge.json_body import StrictJSONRoute
from plimsoll.api.edge.json_rendering import LongList
from plimsoll.api.edge.refusals import NATIVE
from plimsoll.api.fields import Encoding, PriorityHeader, cut_of
from plimsoll.api.openai_fields import (
    EXAMPLES,
    INPUT_TYPES,
    MAX_INPUTS,
    BaseAddress,
    EmbeddingsRequest,
    EmbeddingsResponse,
    Model,
    ModelList,
)
from plimsoll.api.replies import VECTOR_HEADERS, embeddings_response, vector_headers
from plimsoll.api.vector_encodings import vector_field
from plimsoll.errors import InvalidRequestError
from plimsoll.policy.priority import Priority
from plimsoll.serving.embedding import EmbeddingService
from plimsoll.serving.tasks import Embeddings, EmbedTask, raise_first

ERRORS = NATIVE  # which was made after OpenAI's
REFUSED_IDS = (
    "input holds token ids, which come from another model's tokenizer; send texts "
    "(langchain-openai: check_embedding_ctx_length=False). A server with "
    "PLIMSOLL_ACCEPT_TOKEN_IDS=true takes ids of its own model's vocabulary"
)


class ServedModels(Protocol):
    """The models of the server, as far as this dialect speaks of them."""

    @property
    def names(self) -> Sequence[str]:
        """Every name that clients may use."""

    def find(self, name: str) -> object:
        """Raises UnknownModelError for a name that is not among them, in any case."""


def router(
    service: EmbeddingService, models: ServedModels, *, created: int, accept_token_ids: bool
) -> APIRouter:
    """Routes over the use case and the models that it has; `created` is a Unix time.

    accept_token_ids: texts may come as ids of the model's vocabulary.
    """
    routes = APIRouter(route_class=StrictJSONRoute, tags=["openai"])
    for_embeddings: dict[str, Any] = {
        "response_model": EmbeddingsResponse,
        "response_description": "A vector for each text.",
        "responses": {
            200: {"headers": VECTOR_HEADERS},
            **documented(ERRORS, OF_A_BODY, OF_A_MODEL, OF_A_TEXT),
        },
    }
    for_a_list: dict[str, Any] = {
        "response_description": "The names.",
        "responses": documented(ERRORS, OF_A_CLIENT),
    }
    name_in_path = Path(
        description="As GET /v1/models lists it, in any case.",
        openapi_examples={"default": {"value": models.names[0]}},
    )

    async def answer(
        body: EmbeddingsRequest, model: str | None, request: Request, priority: Priority | None
    ) -> Response:
        task = _task(body, model, priority, accept_token_ids=accept_token_ids)
        result = await service.embed_dense(task, permit_of(request))
        # This dialect has no errors per text.
        raise_first(result.failures, lambda index: f"input[{index}]", param="input")
        return await embeddings_response(
            request, result, lambda: _render(result, body.encoding_format), vector_headers(result)
        )

    @routes.post("/v1/embeddings", summary="Embed texts, in OpenAI's shape", **for_embeddings)
    async def create_embeddings(
        body: Annotated[EmbeddingsRequest, Body(openapi_examples=EXAMPLES)],
        request: Request,
        priority: PriorityHeader = None,
    ) -> Response:
        return await answer(body, body.model, request, priority)

    @routes.post(
        "/openai/deployments/{name:path}/embeddings",
        summary="The same where Azure's clients send it",
        **for_embeddings,
    )
    async def create_deployment_embeddings(
        name: Annotated[str, name_in_path],
        body: Annotated[EmbeddingsRequest, Body(openapi_examples=EXAMPLES)],
        request: Request,
        priority: PriorityHeader = None,
    ) -> Response:
        return await answer(body, name, request, priority)

    @routes.get(
        "/v1",
        response_description="It is.",
        responses=documented(ERRORS, OF_A_CLIENT),
        summary="Whether this is a base address of OpenAI's API",
    )
    async def get_base_address() -> BaseAddress:
        return BaseAddress()

    @routes.get("/v1/models", summary="Every name of the models that are served", **for_a_list)
    async def list_models() -> ModelList:
        return ModelList(data=[Model(id=name, created=created) for name in models.names])

    @routes.get("/models", summary="The same for a client whose address lacks /v1", **for_a_list)
    async def list_models_without_version() -> ModelList:
        return await list_models()

    @routes.get(
        "/v1/models/{name:path}",
        response_description="It is served.",
        responses=documented(ERRORS, OF_A_CLIENT, OF_A_MODEL_NAME),
        summary="One model",
    )
    async def retrieve_model(name: Annotated[str, name_in_path]) -> Model:
        models.find(name)
        return Model(id=name, created=created)

    return routes


def _task(
    body: EmbeddingsRequest,
    model: str | None,
    priority: Priority | None,
    *,
    accept_token_ids: bool,
) -> EmbedTask:
    """What the request asks for. Raises InvalidRequestError."""
    texts: list[Any] = [body.input] if _is_one(body.input) else list(body.input)
    if len(texts) > MAX_INPUTS:
        raise InvalidRequestError(
            f"input has {len(texts)} texts and this route takes {MAX_INPUTS}; POST /embed takes "
            "lists of any length",
            param="input",
        )
    come_as_ids = any(not isinstance(text, str) for text in texts)
    if come_as_ids and not accept_token_ids:
        raise InvalidRequestError(REFUSED_IDS, param="input")
    truncate = body.truncate
    return EmbedTask(
        () if come_as_ids else texts,
        INPUT_TYPES.get(body.input_type or "", body.input_type),
        body.dimensions,
        truncate is True or truncate in ("START", "END"),
        model,
        priority=priority,
        cut="end" if isinstance(truncate, bool) else cut_of(truncate),
        token_ids=[_whole(ids) for ids in texts] if come_as_ids else None,
    )


def _is_one(value: Any) -> bool:
    """Whether the input is one text: a string, or a list of numbers."""
    return isinstance(value, str) or bool(value and not isinstance(value[0], str | list))


def _whole(ids: Sequence[int | float]) -> list[int]:
    """Token ids, of which some may be written with a point. Raises InvalidRequestError."""
    broken = next((token for token in ids if not float(token).is_integer()), None)
    if broken is not None:
        raise InvalidRequestError(
            f"input holds {broken}, which is no token id: those are whole numbers", param="input"
        )
    return [int(token) for token in ids]


def _render(result: Embeddings, encoding: Encoding) -> dict[str, Any]:
    rows = [vector for vector in result.vectors if vector is not None]
    return {
        "object": "list",
        "data": LongList(
            {"object": "embedding", "index": index, "embedding": vector_field(row, encoding)}
            for index, row in enumerate(rows)
        ),
        "model": result.traits.name,
        "usage": {"prompt_tokens": result.n_tokens, "total_tokens": result.n_tokens},
        "truncated": LongList(result.truncated),
        "warnings": result.warnings,
    }
