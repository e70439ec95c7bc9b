"""Read a JSON body and parse it, inside limits and with its memory reserved first."""

from collections.abc import Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute

from plimsoll.api.edge.body import IncomingBody, permit_of
from plimsoll.api.edge.json_cost import JSONCost, json_cost
from plimsoll.errors import BodyTooLargeError, InvalidRequestError
from plimsoll.serving.threads import run_in

MAX_FIELDS = 64
# The fields that hold a request's texts, in the words of every dialect.
TEXT_FIELDS = ("input", "inputs", "texts", "documents")
# What a body may grow to when parsed. One text grows to twice its JSON, with an emoji in it to five
# times; a list of short texts to ten times, of objects with a few short fields to eight, of empty
# objects to thirty.
PARSED_RATIO = 8
PARSED_EXTRA_BYTES = 16 << 20
SCAN_FROM_BYTES = 64 << 10  # a smaller body costs little, unless it is deep
THREAD_FROM_BYTES = 256 << 10  # a smaller body is done before a thread has begun


@dataclass(frozen=True, slots=True)
class JSONLimits:
    """What a body may hold.

    n_values: texts, numbers, literals, lists, objects and their keys; no fewer than a body has room
    for that is not scanned. depth: lists and objects inside each other. n_texts: in a field of
    TEXT_FIELDS; 0: any number.
    """

    n_values: int = 1_000_000
    depth: int = 64
    n_texts: int = 0


class StrictJSONRoute(APIRoute):
    """Parses bodies strictly: UTF-8, no NaN, no lone surrogates, bounded depth and memory.

    Drops the work of a client that hangs up.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's own handler over a request whose body has been parsed."""
        handler = super().get_route_handler()
        if self.body_field is None:  # what comes with a GET is left unread
            return handler

        async def answer(request: Request, body: bytearray) -> Response:
            return await handler(_ParsedRequest(request, await _parse(request, body)))

        async def handle(request: Request) -> Response:
            body = bytearray()
            # FastAPI would turn a refusal while reading into a 400 of its own.
            async with aclosing(request.stream()) as chunks:
                async for chunk in chunks:
                    body += chunk
            incoming: IncomingBody = request.state.incoming
            return await incoming.while_connected(answer(request, body))

        return handle


class _ParsedRequest(Request):
    """A request whose body has been read and dropped; what it said is left."""

    def __init__(self, request: Request, parsed: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._parsed = parsed

    async def body(self) -> bytes:
        """Anything but nothing, so that FastAPI asks for JSON."""
        return b"{}"

    async def json(self) -> Any:
        """What the body said."""
        return self._parsed


async def _parse(request: Request, body: bytearray) -> Any:
    """Parse a JSON body and empty it, having reserved what that takes.

    Raises InvalidRequestError, BodyTooLargeError, and what the body's gate raises.
    """
    state = request.app.state
    thread = state.parsing if len(body) > THREAD_FROM_BYTES else None
    try:
        with state.telemetry.requests.stage("parse"):
            cost = await run_in(thread, bounded_cost, body, state.json_limits)
            permit, n_bytes = permit_of(request), len(body)
            is_held = permit.kept_bytes > 0  # small bodies are not
            if is_held:
                await permit.wait_to_keep(n_bytes + cost.parsed_bytes)
                permit.keep(n_bytes + cost.parsed_bytes)
            parsed = await run_in(thread, loads, body)
    finally:
        body.clear()  # its bytes go at once, though the callers still have the object
    if is_held:
        permit.shrink(cost.parsed_bytes)
    if isinstance(parsed, dict):
        if len(parsed) > MAX_FIELDS:
            raise InvalidRequestError(f"the body has more than {MAX_FIELDS} fields")
        if state.json_limits.n_texts:
            _check_texts(parsed, state.json_limits.n_texts)
    return parsed


def _check_texts(parsed: dict[str, Any], most: int) -> None:
    """Raises BodyTooLargeError for more texts than a request may have."""
    for field in TEXT_FIELDS:
        texts = parsed.get(field)
        if isinstance(texts, dict):  # of TEI's similarity
            texts = texts.get("sentences")
        # A list of numbers is one text by its token ids.
        if not isinstance(texts, list) or len(texts) <= most or isinstance(texts[0], int | float):
            continue
        raise BodyTooLargeError(
            f"{field} has {len(texts):,} texts and {most:,} is the most for a request here "
            "(PLIMSOLL_TEXTS_LIMIT); send fewer at a time"
        )


def bounded_cost(
    body: bytes | bytearray,
    limits: JSONLimits,
    what: str = "the body",
    scan_from_bytes: int = SCAN_FROM_BYTES,
) -> JSONCost:
    """What parsing takes; 0 where that is little, as of fewer bytes than `scan_from_bytes`.

    Raises InvalidRequestError and BodyTooLargeError above the limits.
    """
    n_bytes = len(body)
    if n_bytes < scan_from_bytes and body.count(b"[") + body.count(b"{") <= limits.depth:
        return JSONCost(0, 0, 0)
    most = JSONCost(limits.n_values, limits.depth, PARSED_RATIO * n_bytes + PARSED_EXTRA_BYTES)
    cost = json_cost(body, most)
    if cost.depth > limits.depth:
        raise InvalidRequestError(
            f"{what} has more than {limits.depth} lists and objects inside each other "
            "(PLIMSOLL_JSON_DEPTH)"
        )
    if cost.exceeds(most):
        raise BodyTooLargeError(
            f"{what}'s JSON is too large to parse: its first {cost.n_values:,} values would take "
            f"{cost.parsed_bytes >> 20} MiB; {limits.n_values:,} values (PLIMSOLL_JSON_VALUES) and "
            f"{most.parsed_bytes >> 20} MiB are the most for a body of its size; send fewer "
            "texts at a time"
        )
    return cost


def loads(body: bytes | bytearray, what: str = "the body") -> Any:
    """What a JSON text says. Raises InvalidRequestError."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        problem = error.msg  # the error itself holds the text
    raise InvalidRequestError(f"{what} is not valid JSON: {problem}")
