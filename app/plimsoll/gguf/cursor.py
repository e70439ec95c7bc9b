"""Walk through the header of a GGUF file, a large block at a time.

Knows how long things may be and where they stand, not what they mean: that is reader.py.
Every length is checked against its limit and against the size of the source before a byte
is read or memory is taken for it.
"""

import struct
import sys
from typing import Final

from plimsoll.errors import GGUFError, GGUFFormatError, GGUFTruncatedError
from plimsoll.gguf.sources import ByteSource

BLOCK_BYTES: Final = 256 * 1024
"""Read from a source of known size at a time, aligned, so that read-ahead is not cut across."""

MAX_HEADER_BYTES: Final = 32 * 1024 * 1024
"""Everything before the tensor data. Vocabularies of 500,000 words stay near 16 MiB."""

MAX_METADATA_MEMORY_BYTES: Final = 64 * 1024 * 1024
"""What decoded metadata may take as Python objects: a short string takes six times its bytes."""

MAX_STRING_BYTES: Final = 1024 * 1024
"""One string in the metadata. Chat templates and licence texts stay near 50 KiB."""

_LENGTH = struct.Struct("<Q")
_SHOWN_CHARACTERS = 80


class HeaderCursor:
    """A position in a source. Owns the block read last and the count of memory taken.

    `promised_bytes` is what must follow after the field now being read, going by the counts
    read so far. From a source of unknown size nothing past it is ever taken, because such a source
    may end right behind the header.
    """

    def __init__(self, source: ByteSource) -> None:
        self.source = source
        self.promised_bytes = 0
        self._buffer = b""
        self._position = 0  # in the buffer
        self._buffer_offset = 0  # of the buffer in the source
        self._memory_bytes = 0

    @property
    def offset(self) -> int:
        """Where the next byte stands in the source."""
        return self._buffer_offset + self._position

    def error(self, message: str, offset: int | None = None) -> GGUFFormatError:
        """Build the error for a value that cannot be, at `offset` or here."""
        at = self.offset if offset is None else offset
        return GGUFFormatError(f"{self.source.name}: {message}", offset=at)

    def expect(self, n_bytes: int, what: str) -> None:
        """Raise unless `n_bytes` more can stand here; reads nothing."""
        offset, size = self.offset, self.source.size
        if size is not None and offset + n_bytes > size:
            raise GGUFTruncatedError(
                f"{self.source.name}: the file ends inside {what}, which takes at least "
                f"{n_bytes} bytes where {max(size - offset, 0)} are left",
                offset=offset,
            )
        if offset + n_bytes > MAX_HEADER_BYTES:
            raise self.error(
                f"{what} takes at least {n_bytes} bytes and would end past the "
                f"{MAX_HEADER_BYTES} bytes that a header may have"
            )

    def take(self, n_bytes: int, what: str) -> bytes:
        """Read `n_bytes` and step behind them."""
        self._need(n_bytes, what)
        start = self._position
        self._position += n_bytes
        return self._buffer[start : self._position]

    def number(self, layout: struct.Struct, what: str) -> int | float:
        """Read one number."""
        value: int | float = layout.unpack(self.take(layout.size, what))[0]
        return value

    def count(self, what: str, layout: struct.Struct = _LENGTH) -> int:
        """Read one unsigned number."""
        return int(self.number(layout, what))

    def string(self, what: str, limit_bytes: int = MAX_STRING_BYTES) -> str:
        """Read a length and as many bytes of UTF-8."""
        start = self.offset
        n_bytes = self.count(f"the length of {what}")
        if n_bytes > limit_bytes:
            raise self.error(
                f"{what} is said to have {n_bytes} bytes; at most {limit_bytes} are accepted", start
            )
        data = self.take(n_bytes, what)
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise self._not_utf8(what, start + _LENGTH.size, error) from error
        self.charge(sys.getsizeof(text))
        return text

    def strings(self, n_strings: int, what: str) -> list[str]:
        """Read an array of strings."""
        self.expect(n_strings * _LENGTH.size, f"{what} ({n_strings} strings)")
        promised_after = self.promised_bytes
        values: list[str] = []
        while len(values) < n_strings:
            block = self._strings_in_buffer(n_strings - len(values), what)
            self.charge(sum(map(sys.getsizeof, block)) + 8 * len(block))
            values += block
            if len(values) < n_strings:  # the next one is cut by the end of the buffer
                n_after = n_strings - len(values) - 1
                self.promised_bytes = promised_after + n_after * _LENGTH.size
                values.append(self.string(f"string {len(values)} of {what}"))
        self.promised_bytes = promised_after
        return values

    def charge(self, n_bytes: int) -> None:
        """Count memory taken for decoded metadata; raise when it is too much."""
        self._memory_bytes += n_bytes
        if self._memory_bytes > MAX_METADATA_MEMORY_BYTES:
            raise self.error(
                f"the metadata takes more than {MAX_METADATA_MEMORY_BYTES} bytes of memory"
            )

    def _strings_in_buffer(self, n_strings: int, what: str) -> list[str]:
        """Decode up to `n_strings` that lie whole in the buffer. The hot loop: one pass, no calls.

        Their lengths need no check: what is in the buffer is short.
        """
        buffer, position, end = self._buffer, self._position, len(self._buffer)
        unpack_from = _LENGTH.unpack_from
        values: list[str] = []
        append = values.append
        try:
            while n_strings and position + 8 <= end:
                start = position + 8
                stop = start + unpack_from(buffer, position)[0]
                if stop > end:
                    break
                append(str(buffer[start:stop], "utf-8"))
                position = stop
                n_strings -= 1
        except UnicodeDecodeError as error:
            offset = self._buffer_offset + position + 8
            raise self._not_utf8(f"a string of {what}", offset, error) from error
        self._position = position
        return values

    def _not_utf8(self, what: str, offset: int, error: UnicodeDecodeError) -> GGUFError:
        return self.error(f"{what} is not valid UTF-8 ({error.reason})", offset + error.start)

    def _need(self, n_bytes: int, what: str) -> None:
        """Have at least `n_bytes` in the buffer from the position on."""
        missing = n_bytes - (len(self._buffer) - self._position)
        if missing <= 0:
            return
        self.expect(n_bytes, what)
        rest = self._buffer[self._position :]
        self._buffer_offset += self._position
        self._position = 0
        start = self._buffer_offset + len(rest)
        self._buffer = rest + self.source.read_at(start, self._read_size(start, missing))

    def _read_size(self, start: int, missing: int) -> int:
        size = self.source.size
        if size is None:
            return max(missing, min(missing + self.promised_bytes, BLOCK_BYTES))
        end = -(-(start + missing) // BLOCK_BYTES) * BLOCK_BYTES
        return min(end, size) - start


def shown(text: str) -> str:
    """Quote text from a file for a message: no control characters, no endless lines."""
    if len(text) > _SHOWN_CHARACTERS:
        text = text[:_SHOWN_CHARACTERS] + "…"
    return repr(text)
