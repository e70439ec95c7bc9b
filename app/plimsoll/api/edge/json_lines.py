"""Read a body of JSON lines in parts: a value a line, of which one that is wrong fails alone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from plimsoll.api.edge.body import IncomingBody, permit_of
from plimsoll.api.edge.json_body import THREAD_FROM_BYTES, bounded_cost, loads
from plimsoll.errors import BodyTooLargeError, RequestError
from plimsoll.policy.costs import INGEST_BYTES, MOST_LINE_BYTES
from plimsoll.serving.threads import run_in

TURN_LINES = 100  # after so many others have their turn: lines that are wrong wait for nothing
# Many lines are kept at a time, so each of them counts. A shorter one is not worth a scan, and
# counts as if it were all numbers of one digit, which grow the most.
SCAN_FROM_BYTES = 1024
SHORT_LINE_RATIO = 32


@dataclass(frozen=True)
class JSONLine:
    """A line by its number, from 1, and its value; or the error of one that has none.

    parsed_bytes: the most that the value takes.
    """

    number: int
    value: Any = None
    parsed_bytes: int = 0
    error: RequestError | BodyTooLargeError | None = None


async def json_lines(request: Request) -> AsyncIterator[JSONLine]:
    """The body's lines as they come, blank ones left out; it may be of any length.

    Memory is reserved first. Raises what IncomingBody.receive does.
    """
    incoming: IncomingBody = request.state.incoming
    incoming.read_in_parts()
    permit = permit_of(request)
    await permit.wait_to_keep(INGEST_BYTES)
    permit.keep(INGEST_BYTES)
    number, line = 0, bytearray()
    async with aclosing(request.stream()) as parts:
        async for part in parts:
            *ends, rest = part.split(b"\n")
            for end in ends:
                number += 1
                if number % TURN_LINES == 0:
                    await asyncio.sleep(0)
                line += end
                if line and not line.isspace():
                    yield await _parsed(request, number, bytes(line))
                line.clear()
            # Of a line that is too long enough is kept to see that it is.
            line += rest[: MOST_LINE_BYTES + 1 - len(line)]
    if line and not line.isspace():
        yield await _parsed(request, number + 1, bytes(line))


async def _parsed(request: Request, number: int, line: bytes) -> JSONLine:
    state = request.app.state
    thread = state.parsing if len(line) > THREAD_FROM_BYTES else None
    try:
        if len(line) > MOST_LINE_BYTES:
            raise BodyTooLargeError(f"the line is longer than {MOST_LINE_BYTES >> 20} MiB")
        cost = await run_in(
            thread, bounded_cost, line, state.json_limits, "the line", SCAN_FROM_BYTES
        )
        permit_of(request).keep(INGEST_BYTES + cost.parsed_bytes)
        value = await run_in(thread, loads, line, "the line")
        return JSONLine(number, value, cost.parsed_bytes or SHORT_LINE_RATIO * len(line))
    except (RequestError, BodyTooLargeError) as error:
        return JSONLine(number, error=error)
