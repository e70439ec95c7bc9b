"""Undo the encoding of a request's body, a bounded step at a time.

Pure: bytes in, bytes out. Limits are the body's matter (body.py): a few kilobytes may become
gigabytes, so no step gives more than STEP_BYTES. gzip after RFC 1952, deflate after
RFC 9110 8.4.1.2 (zlib's format) and, as some clients send it, without zlib's header.
"""

import zlib
from collections.abc import Iterable

from plimsoll.errors import InvalidRequestError, UnsupportedEncodingError

STEP_BYTES = 64 << 10
ACCEPTED = "gzip, deflate, identity"
MOST_MEMBERS = 1024  # of one gzip body; empty ones cost time and bring nothing

_GZIP, _ZLIB, _RAW = 31, 15, -15  # zlib's wbits


def decoder_of(headers: Iterable[tuple[bytes, bytes]]) -> "BodyDecoder | None":
    """What decodes a body with these headers; None where it comes as it is.

    Raises UnsupportedEncodingError for other codings, and for one upon another.
    """
    values = b",".join(value for name, value in headers if name == b"content-encoding")
    named = [coding.strip().lower() for coding in values.decode("latin-1").split(",")]
    codings = [coding for coding in named if coding not in ("", "identity")]
    if not codings:
        return None
    if codings in (["gzip"], ["x-gzip"], ["deflate"]):
        return BodyDecoder(codings[0].removeprefix("x-"))
    raise UnsupportedEncodingError(
        f"a body with Content-Encoding: {', '.join(codings)} is not read; send it as it is, or "
        "with gzip or deflate alone"
    )


class BodyDecoder:
    """Owns the state between the pieces of one body; `take` until it gives nothing, then `feed`."""

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._left = b""  # encoded bytes that are not decoded yet
        self._inflate: zlib._Decompress | None = None
        self._n_members = 0
        self._holds_more = False  # a step that was full may have left some inside zlib

    def feed(self, encoded: bytes) -> None:
        """Add what has arrived."""
        self._left += encoded

    def take(self) -> bytes:
        """The next bytes of the body, STEP_BYTES at most; none: it needs to be fed.

        Raises InvalidRequestError for bytes that are no such encoding.
        """
        while self._left or self._holds_more:
            inflate = self._inflate
            if inflate is None or inflate.eof:
                inflate = self._inflate = self._next_member()
            try:
                decoded = inflate.decompress(self._left, STEP_BYTES)
            except zlib.error as error:
                raise InvalidRequestError(
                    f"the body is not the {self._coding} that its Content-Encoding says: {error}"
                ) from None
            self._left = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
            self._holds_more = len(decoded) == STEP_BYTES and not inflate.eof
            if decoded:
                return decoded
        return b""

    def finish(self) -> None:
        """Raise InvalidRequestError unless the body that has been taken was whole."""
        if self._inflate is not None and not self._inflate.eof:
            raise InvalidRequestError(
                f"the {self._coding} body ends in its middle; send the whole of it"
            )

    def _next_member(self) -> "zlib._Decompress":
        """A new state for the bytes that are left: gzip may be several files in a row."""
        self._n_members += 1
        if self._n_members > (MOST_MEMBERS if self._coding == "gzip" else 1):
            raise InvalidRequestError(f"bytes follow the end of the {self._coding} body")
        if self._coding == "gzip":
            return zlib.decompressobj(_GZIP)
        # zlib's header begins with its method, 8; a raw stream as good as never does.
        return zlib.decompressobj(_ZLIB if self._left[0] & 0x0F == 8 else _RAW)
