"""Tokens with the places in the text that they come from, and texts from tokens.

Places are counted in bytes of UTF-8, as Hugging Face's libraries in Rust count them. Nothing is
cut to a limit.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from plimsoll.encoder.tokenizer import PlacedPiece, WordPieceTokenizer


class TokenSpan(NamedTuple):
    """One token; `start` and `stop` are None for the special ones at the ends of a text."""

    id: int
    text: str
    is_special: bool
    start: int | None
    stop: int | None


@dataclass(frozen=True, eq=False)
class TokenSpans:
    """All tokens of one text. ends: ids and words of the special tokens around them, or None."""

    source: bytes  # the text with its prefix, in UTF-8
    ids: np.ndarray  # uint32 (tokens,)
    starts: np.ndarray  # int64 (tokens,), bytes of `source`
    stops: np.ndarray  # int64 (tokens,)
    ends: tuple[tuple[int, str], tuple[int, str]] | None

    def __len__(self) -> int:
        return len(self.ids) + 2 * (self.ends is not None)

    def __iter__(self) -> Iterator[TokenSpan]:
        """Each token, made as it is asked for."""
        if self.ends is not None:
            yield TokenSpan(*self.ends[0], True, None, None)
        places = (self.ids.tolist(), self.starts.tolist(), self.stops.tolist())
        for token, start, stop in zip(*places, strict=True):
            # A token may stand for a part of a character, such as one letter of a ligature.
            text = self.source[start:stop].decode("utf-8", "replace")
            yield TokenSpan(token, text, False, start, stop)
        if self.ends is not None:
            yield TokenSpan(*self.ends[1], True, None, None)


def token_spans_steps(
    tokenizer: WordPieceTokenizer, texts: Iterable[str], prefix: str, *, with_ends: bool
) -> Iterator[list[TokenSpans]]:
    """Every token of each text, in steps that each take little time.

    A step gives the texts that it came to the end of: one or none.
    with_ends: with the special tokens that a model gets around a text.
    """
    ends = tokenizer.ends if with_ends else None
    for text in texts:
        places = _Places(prefix + text)
        for pieces in tokenizer.placed_pieces(places.text):
            for piece in pieces:
                places.add(piece)
            yield []
        yield [places.spans(ends)]


class _Places:
    """Owns how far a text has been read, and the tokens found in it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._at = self._at_byte = 0
        self._n_skipped = 0  # characters of a word that is longer than any piece
        self._ids: list[np.ndarray] = [np.empty(0, np.uint32)]
        self._places: list[np.ndarray] = [np.empty((0, 2), np.int64)]

    def add(self, piece: PlacedPiece) -> None:
        """Take the tokens of the next piece."""
        if not piece.characters and piece.n_read:
            self._n_skipped += piece.n_read
            return
        if self._n_skipped:
            # What normalisation leaves of the long word: its tokens have the place of the whole.
            word, self._n_skipped = self._read(self._n_skipped), 0
            places = np.tile(np.array([word], np.int64), (len(piece.ids), 1))
        else:
            start, _ = self._read(len(piece.characters))
            offsets = np.array(piece.offsets, np.int64).reshape(-1, 2)
            places = start + _bytes_before(piece.characters)[offsets]
        self._ids.append(np.array(piece.ids, np.uint32))
        self._places.append(places)

    def spans(self, ends: tuple[tuple[int, str], tuple[int, str]] | None) -> TokenSpans:
        """All that was found."""
        places = np.concatenate(self._places)
        return TokenSpans(
            self.text.encode(), np.concatenate(self._ids), places[:, 0], places[:, 1], ends
        )

    def _read(self, n_characters: int) -> tuple[int, int]:
        """Go on by so many characters; returns the bytes before and after them."""
        start = self._at_byte
        self._at_byte += len(self.text[self._at : self._at + n_characters].encode())
        self._at += n_characters
        return start, self._at_byte


def _bytes_before(text: str) -> np.ndarray:
    """How many bytes of UTF-8 stand before each character, and in all: int64 (characters + 1,)."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (points >= 0x80) + (points >= 0x800).astype(np.int64) + (points >= 0x10000)
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(widths)))
