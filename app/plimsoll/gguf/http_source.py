"""A GGUF file on a web server, read through HTTP ranges.

Meant for looking at a header without fetching the weights; downloads with resume and
checksums are the hub's matter. Range semantics follow RFC 9110, section 14.
"""

import re
from types import TracebackType
from typing import Final, Self

import httpx

from plimsoll.errors import GGUFError, GGUFTruncatedError
from plimsoll.gguf.sources import check_not_negative

READ_AHEAD_BYTES: Final = 256 * 1024
TIMEOUT_S: Final = 30.0

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_UNSATISFIED_RANGE = re.compile(r"bytes \*/(\d{1,18})")


class HTTPRangeSource:
    """Bytes behind a URL, a request for every 256 KiB or more.

    Owns the last block that was read, and the client unless one is given. Nothing is
    asked of the server before the first read; `size` is None until its first answer.
    For one thread at a time; a failed read is not repeated.
    """

    def __init__(self, url: str, client: httpx.Client | None = None) -> None:
        """`client` brings headers and timeouts of its own, and stays the caller's."""
        self.name = url
        self.size: int | None = None
        self._client = client or httpx.Client(timeout=TIMEOUT_S)
        self._owns_client = client is None
        self._etag: str | None = None
        self._block = b""
        self._block_offset = 0

    def read_at(self, offset: int, n_bytes: int) -> bytes:
        """Return exactly `n_bytes`; see ByteSource.

        Raises GGUFError when the server cannot be reached, does not do ranges, or when the
        file there changes between two reads.
        """
        check_not_negative(offset, n_bytes)
        if self.size is not None and offset + n_bytes > self.size:
            raise self._truncated(offset, n_bytes)
        known = self._known(offset, n_bytes)
        if len(known) < n_bytes:
            missing = offset + len(known)
            self._fetch(missing, max(n_bytes - len(known), READ_AHEAD_BYTES))
            known += self._known(missing, n_bytes - len(known))
        if len(known) < n_bytes:
            raise self._truncated(offset, n_bytes)
        return known

    def close(self) -> None:
        """Close the client, if it was made here."""
        if self._owns_client:
            self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _known(self, offset: int, n_bytes: int) -> bytes:
        """What of the wanted bytes, from their start on, the last block holds."""
        start = offset - self._block_offset
        return self._block[start : start + n_bytes] if start >= 0 else b""

    def _fetch(self, offset: int, n_bytes: int) -> None:
        """Make the block begin at `offset`, and end there or at the end of the file."""
        last = offset + n_bytes - 1  # the server stops at the end of the file
        headers = {"Range": f"bytes={offset}-{last}", "Accept-Encoding": "identity"}
        try:
            with self._client.stream(
                "GET", self.name, headers=headers, follow_redirects=True
            ) as response:
                n_promised = self._check_answer(response, offset, last)
                self._block = self._read_body(response, offset, n_promised)
                self._block_offset = offset
        except httpx.TimeoutException as error:
            raise GGUFError(
                f"{self.name} did not answer in time: {error}", offset=offset
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise GGUFError(f"{self.name} cannot be read: {error}", offset=offset) from error

    def _check_answer(self, response: httpx.Response, offset: int, last: int) -> int:
        """Return the number of bytes that the body must have."""
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            past_end = _UNSATISFIED_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            end = int(past_end[1]) if past_end else offset
            raise GGUFTruncatedError(
                f"{self.name} ends at byte {end}, nothing is to be had from byte {offset} on",
                offset=min(offset, end),
            )
        if response.status_code == httpx.codes.OK:
            raise GGUFError(
                f"{self.name}: the server ignores Range requests; download the file "
                "and open it from disk",
                offset=offset,
            )
        if response.status_code != httpx.codes.PARTIAL_CONTENT:
            raise GGUFError(
                f"{self.name} was answered with HTTP status {response.status_code} "
                f"{response.reason_phrase}",
                offset=offset,
            )
        return self._check_range(response.headers, offset, last)

    def _check_range(self, headers: httpx.Headers, offset: int, last: int) -> int:
        given = headers.get("Content-Range", "")
        parts = _CONTENT_RANGE.fullmatch(given)
        if parts is None or headers.get("Content-Encoding", "identity") != "identity":
            raise GGUFError(
                f"{self.name}: the server answered a request for bytes {offset}-{last} with "
                f"Content-Range {given[:80]!r}, Content-Encoding "
                f"{headers.get('Content-Encoding', 'identity')[:80]!r}",
                offset=offset,
            )
        total = None if parts[3] == "*" else int(parts[3])
        expected_last = last if total is None else min(last, total - 1)
        if (int(parts[1]), int(parts[2])) != (offset, expected_last):
            raise GGUFError(
                f"{self.name}: the server was asked for bytes {offset}-{last} and gave {given!r}",
                offset=offset,
            )
        self._check_unchanged(total, headers.get("ETag"), offset)
        return expected_last - offset + 1

    def _check_unchanged(self, total: int | None, etag: str | None, offset: int) -> None:
        if (self.size is not None and total != self.size) or (
            self._etag is not None and etag != self._etag
        ):
            raise GGUFError(
                f"{self.name} changed while it was being read; try again", offset=offset
            )
        self.size = total
        self._etag = etag

    def _read_body(self, response: httpx.Response, offset: int, n_bytes: int) -> bytes:
        body = bytearray()
        for piece in response.iter_raw():
            body += piece
            if len(body) > n_bytes:
                raise GGUFError(
                    f"{self.name}: the server sent more than the {n_bytes} bytes it announced",
                    offset=offset,
                )
        if len(body) < n_bytes:
            raise GGUFError(
                f"{self.name}: the connection ended after {len(body)} of {n_bytes} bytes",
                offset=offset + len(body),
            )
        return bytes(body)

    def _truncated(self, offset: int, n_bytes: int) -> GGUFTruncatedError:
        return GGUFTruncatedError(
            f"{self.name} has {self.size} bytes, but {n_bytes} were to be read from byte "
            f"{offset} on",
            offset=min(offset, self.size or offset),
        )
