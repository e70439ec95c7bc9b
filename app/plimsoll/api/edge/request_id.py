"""The id of a request: what its client calls it, else a new one."""

import re
from collections.abc import Iterable
from uuid import uuid4

HEADER = b"x-request-id"
# At most 128 characters of printable ASCII, no space at either end: nothing that could begin a line
# of its own in a log or among headers.
VALID = re.compile(rb"(?! )[\x20-\x7e]{1,128}(?<! )")


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The id in a request's headers (raw, lower-case names); a new one where it is not valid."""
    given = [value for name, value in headers if name == HEADER]
    if len(given) == 1 and VALID.fullmatch(given[0]):
        return given[0].decode("ascii")
    return uuid4().hex
