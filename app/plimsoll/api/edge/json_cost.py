"""Predict what a JSON text costs in memory, before a parser spends it.

A scan, not a parser: text that is no JSON gets figures too, and the parser's refusal later. Figures
grow with the text, so they bound what a parser builds before it meets a mistake. The scan works
through the caller's own buffer in blocks; its arrays take 4 MiB at most.

Costs are those of CPython 3.11 (later ones need less) and orjson 3, in pymalloc's steps of 16
bytes; a test compares them with tracemalloc. orjson copies the text and keeps 16 bytes a value
while it parses; pydantic's copies of lists and the UTF-8 that tokenizing leaves in each string
beyond ASCII come later and take no more, so both are counted once.
"""

from dataclasses import dataclass

import numpy as np

BLOCK_BYTES = 1 << 16

VALUE_BYTES = 8 + 16  # a pointer to it; orjson's note of it
CONTAINER_BYTES = 64  # an empty list or object
LIST_BYTES = 16  # for a list that is not empty: rounding of its pointers
OBJECT_BYTES = 56  # for an object that is not empty: with the next, the table of its keys
KEY_BYTES = 72
SCALAR_BYTES = 32
ASCII_BYTES, OTHER_BYTES = 64, 88  # a string besides its characters

QUOTE, BACKSLASH, SPACE = b'"\\ '
LIST, END_LIST, OBJECT, END_OBJECT, COMMA, COLON = b"[]{},:"


@dataclass(frozen=True, slots=True)
class JSONCost:
    """What parsing takes.

    n_values: texts, numbers, literals, lists, objects, and the keys of objects.
    depth: lists and objects inside each other.
    parsed_bytes: memory at its highest, the text's own not included.
    """

    n_values: int
    depth: int
    parsed_bytes: int

    def exceeds(self, limits: "JSONCost") -> bool:
        """Whether any figure is above that of `limits`."""
        return (
            self.n_values > limits.n_values
            or self.depth > limits.depth
            or self.parsed_bytes > limits.parsed_bytes
        )


def json_cost(
    text: bytes | bytearray, limits: JSONCost | None = None, *, block_bytes: int = BLOCK_BYTES
) -> JSONCost:
    """Count the values of a JSON text in UTF-8 and predict the memory of parsing it.

    Stops behind the block in which a figure passes that of `limits`.
    """
    scan = _Scan(np.frombuffer(text, np.uint8))
    for start in range(0, len(text), block_bytes):
        scan.read_block(start, start + block_bytes)
        if limits is not None and scan.cost().exceeds(limits):
            break
    return scan.cost()


def _count(found: np.ndarray) -> int:
    return int(np.count_nonzero(found))


class _Scan:
    """What a text holds up to some byte, and in the midst of what it stands there."""

    def __init__(self, text: np.ndarray) -> None:
        self._text = text  # uint8 (n_bytes,)
        self._n_commas = self._n_keys = self._n_strings = self._n_scalar_bytes = 0
        self._n_lists = self._n_objects = self._n_empty_lists = self._n_empty_objects = 0
        self._string_bytes = 0
        self._depth = self._max_depth = 0
        self._last = np.uint8(0)  # of the bytes outside strings
        self._escaped = False  # the next byte stands behind a backslash
        self._inside = False  # a string, of so many characters, so wide, so far:
        self._open_characters = self._open_width = 0

    def cost(self) -> JSONCost:
        """The cost of the part that has been read."""
        n_containers = self._n_lists + self._n_objects
        n_empty = self._n_empty_lists + self._n_empty_objects
        # A container holds one value more than commas, unless it is empty. The root is one, too.
        n_values = 1 + self._n_commas + n_containers - n_empty + self._n_keys
        n_scalars = max(0, n_values - n_containers - self._n_strings)
        parsed_bytes = (
            len(self._text)
            + VALUE_BYTES * n_values
            + CONTAINER_BYTES * n_containers
            + LIST_BYTES * (self._n_lists - self._n_empty_lists)
            + OBJECT_BYTES * (self._n_objects - self._n_empty_objects)
            + KEY_BYTES * self._n_keys
            + SCALAR_BYTES * n_scalars
            + self._n_scalar_bytes  # a long number's further digits
            + self._string_bytes
        )
        return JSONCost(n_values, self._max_depth, parsed_bytes)

    def read_block(self, start: int, end: int) -> None:
        """Count what stands between two bytes; blocks follow one another."""
        block = self._text[start:end]
        escaped = self._find_escaped(block)
        is_quote = block == QUOTE
        is_quote[escaped] = False
        # Parts begin at the block's start and at each quote: by turns outside and inside a string.
        starts = np.concatenate(([0], np.flatnonzero(is_quote)))
        is_string = (np.arange(len(starts)) % 2 == 1) ^ self._inside
        inside = np.repeat(is_string, np.diff(starts, append=len(block)))
        self._measure_strings(start, block, starts, escaped)
        self._count_structure(block[~inside & (block > SPACE)])
        self._inside = bool(is_string[-1])

    def _find_escaped(self, block: np.ndarray) -> np.ndarray:
        """Places of the bytes behind a backslash that does not itself stand behind one."""
        slashes = np.flatnonzero(block == BACKSLASH)
        if self._escaped and block[0] == BACKSLASH:
            slashes = slashes[1:]
        begins_run = np.diff(slashes, prepend=-2) > 1
        run_starts = np.maximum.accumulate(np.where(begins_run, slashes, 0))
        escaped: np.ndarray = slashes[(slashes - run_starts) & 1 == 0] + 1
        if self._escaped:
            escaped = np.concatenate(([0], escaped))
        self._escaped = bool(escaped.size) and bool(escaped[-1] == len(block))
        return escaped[:-1] if self._escaped else escaped

    def _count_structure(self, outside: np.ndarray) -> None:
        """Count in the bytes outside strings, without blanks; a string is its closing quote."""
        if not outside.size:
            return
        is_list, is_object = outside == LIST, outside == OBJECT
        is_list_end, is_object_end = outside == END_LIST, outside == END_OBJECT
        is_string, is_comma, is_colon = outside == QUOTE, outside == COMMA, outside == COLON
        begins, ends = is_list | is_object, is_list_end | is_object_end
        self._n_lists += _count(is_list)
        self._n_objects += _count(is_object)
        self._n_strings += _count(is_string)
        self._n_commas += _count(is_comma)
        self._n_keys += _count(is_colon)
        is_scalar = ~(begins | ends | is_string | is_comma | is_colon)
        self._n_scalar_bytes += _count(is_scalar)
        before = np.concatenate(([self._last], outside[:-1]))
        self._n_empty_lists += _count((before == LIST) & is_list_end)
        self._n_empty_objects += _count((before == OBJECT) & is_object_end)
        self._last = outside[-1]
        depths = self._depth + np.cumsum(begins.astype(np.int64) - ends)
        self._max_depth = max(self._max_depth, int(depths.max()))
        self._depth = int(depths[-1])

    def _measure_strings(
        self, start: int, block: np.ndarray, starts: np.ndarray, escaped: np.ndarray
    ) -> None:
        """Add up the strings that end in the block, each as wide as its widest character."""
        n_characters, widths = self._string_sizes(start, block, starts, escaped)
        strings = slice(0 if self._inside else 1, None, 2)
        n_characters, widths = n_characters[strings], widths[strings]
        if self._inside:
            n_characters[0] += self._open_characters
            widths[0] = max(widths[0], self._open_width)
        self._open_characters = self._open_width = 0
        is_open = self._inside ^ (len(starts) % 2 == 0)
        if is_open:
            self._open_characters, self._open_width = int(n_characters[-1]), int(widths[-1])
            n_characters, widths = n_characters[:-1], widths[:-1]
        frame_bytes = np.where(widths == 0, ASCII_BYTES, OTHER_BYTES)
        self._string_bytes += int((frame_bytes + n_characters * np.maximum(widths, 1)).sum())

    def _string_sizes(
        self, start: int, block: np.ndarray, starts: np.ndarray, escaped: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Characters of each part and the bytes that its widest one takes, 0 for ASCII."""
        if not escaped.size and block.max() < 0x80:
            return np.diff(starts, append=len(block)), np.zeros(len(starts), np.uint8)
        # A character begins at every byte that does not continue one. A backslash counts as one;
        # what stands behind it does not, the four digits of \uXXXX included.
        characters = ((block & 0xC0) != 0x80).view(np.int8)
        is_unicode = block[escaped] == ord("u")
        characters[escaped] = np.where(is_unicode, -4, 0)
        widths = (block >= 0xC2).view(np.uint8) + (block >= 0xC4) + np.uint8(2) * (block >= 0xF0)
        widths[escaped[is_unicode]] = self._escape_widths(start + escaped[is_unicode])
        n_characters = np.add.reduceat(characters, starts, dtype=np.int64)
        return n_characters, np.maximum.reduceat(widths, starts)

    def _escape_widths(self, places: np.ndarray) -> np.ndarray:
        """How wide each \\uXXXX makes its string; `places` are those of the u in the text."""
        first, second = (self._text[np.minimum(places + i, len(self._text) - 1)] for i in (1, 2))
        is_latin = (first == ord("0")) & (second == ord("0"))
        is_surrogate = ((first | 0x20) == ord("d")) & (second >= ord("8"))
        return np.where(is_latin, 1, np.where(is_surrogate, 4, 2)).astype(np.uint8)
