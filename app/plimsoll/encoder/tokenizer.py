"""Texts to ids: WordPiece over a GGUF file's own vocabulary.

Words, normaliser and special tokens are read in `vocabulary`; handing them to the `tokenizers`
library gives the ids of the model's original tokenizer.

The library takes up to 500 bytes a character, so it never sees a long text as a whole: the
text goes in as pieces, cut where the library parts words in any context.
"""

import re
import unicodedata
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from plimsoll.encoder.vocabulary import (
    SEPARATOR,
    START,
    UNKNOWN,
    Normalizer,
    Vocabulary,
)
from plimsoll.errors import InvalidRequestError, TokenIdsError

Cut = Literal["end", "start"]
"""Which side of a text goes where it is over the limit. What stands before it stays."""

# What WordPiece's reference implementation gives up on, as one unknown token.
MAX_WORD_CHARACTERS = 100
# Special tokens that are read as such in a text too. Of another form they are not: a long text
# might be cut inside of one.
READ_IN_TEXTS = re.compile(r"\[[A-Za-z0-9]+\]")
# A longer text is cut. The pieces of a step go to the library in one call, several cores at once.
PIECE_CHARACTERS = 8 << 10
# Read in one step: tens of milliseconds and at most 16 MiB inside the library.
STEP_CHARACTERS = 32 << 10
# Ideographs, which the library makes words of their own: its own table, with its own gaps.
IDEOGRAPHS = (
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002b73f"
    "\U0002b740-\U0002b81f\U0002b920-\U0002ceaf\U0002f800-\U0002fa1f"
)


@dataclass(frozen=True)
class TokenizedText:
    """One text's ids, cut to the limit, and how many there would have been."""

    ids: np.ndarray  # int64 (kept,)
    n_tokens: int

    @property
    def truncated(self) -> bool:
        """Whether tokens were cut off."""
        return self.n_tokens > len(self.ids)


@dataclass(frozen=True)
class _Piece:
    """Characters whose tokens follow those of the piece before, and what it took to find them."""

    characters: str
    n_read: int
    ends_text: bool = False


class PlacedPiece(NamedTuple):
    """Characters of a text and their tokens; `offsets` are from which of them up to which.

    n_read: characters that were read for them. Of a word that is too long for a piece, parts come
    first that hold none of what was read, and then what normalisation leaves of it, with nothing
    read.
    """

    characters: str
    n_read: int
    ids: Sequence[int]
    offsets: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Boundaries:
    """Where a text may be cut without a change to its tokens."""

    first: re.Pattern[str]  # the next character that parts words
    last: re.Pattern[str]  # all up to the last place to cut at


class WordPieceTokenizer:
    """Turns texts into ids between [CLS] and [SEP]; read-only after construction."""

    def __init__(self, vocabulary: Vocabulary, *, piece_characters: int = PIECE_CHARACTERS) -> None:
        """Build over a vocabulary as `read_vocabulary` gives it.

        piece_characters: cut longer texts; at least as many as a special token has.
        """
        self._normalizer = vocabulary.normalizer
        self._ends = vocabulary.special[START], vocabulary.special[SEPARATOR]
        self._piece_characters = piece_characters
        self._tokenizer = _build(vocabulary)

    def tokenize(self, texts: Iterable[str], limit: int) -> list[TokenizedText]:
        """Ids of each text, with the last one kept [SEP] where it was cut to `limit`.

        A text without any token of its own has two ids, [CLS] and [SEP].
        """
        return [text for finished in self.steps(texts, limit) for text in finished]

    def steps(
        self, texts: Iterable[str], limit: int, prefix: str = "", cut: Cut = "end"
    ) -> Iterator[list[TokenizedText]]:
        """Tokenize in steps, between which a caller may let others in.

        A step reads STEP_CHARACTERS at most and gives the texts that it came to the end of, often
        none; all steps together give what `tokenize` gives. `prefix` stands before every text.
        """
        front: list[int] = []
        if cut == "start":
            front, prefix = self._prefix_ids(prefix), ""
        kept: list[int] = []
        n_tokens = 0
        for pieces in self._batches(texts, prefix):
            finished = []
            for piece, encoding in zip(pieces, self._encode(pieces), strict=True):
                n_tokens += len(encoding)
                if cut == "start":
                    kept += encoding.ids
                    del kept[:-limit]
                elif len(kept) < limit:
                    kept += encoding.ids[: limit - len(kept)]
                if piece.ends_text:
                    finished.append(self._finished(front, kept, n_tokens, limit, cut))
                    kept, n_tokens = [], 0
            yield finished

    def take_ids(
        self, ids: Sequence[int], limit: int, prefix: str = "", cut: Cut = "end"
    ) -> TokenizedText:
        """A text that its sender has tokenized, as `steps` would give it.

        [CLS] and [SEP] may stand around the ids, both or neither.
        Raises InvalidRequestError for an id that is not in the vocabulary.
        """
        if (unknown := self._unknown(ids)) is not None:
            raise InvalidRequestError(
                f"input holds the token id {unknown}, and the ids of this model's vocabulary go "
                f"from 0 to {self._n_words - 1}; send ids of its own tokenizer, or texts "
                "(langchain-openai: check_embedding_ctx_length=False)",
                param="input",
            )
        if len(ids) > 1 and (ids[0], ids[-1]) == self._ends:
            ids = ids[1:-1]
        return self._finished(self._prefix_ids(prefix), ids, len(ids), limit, cut)

    def _unknown(self, ids: Sequence[int]) -> int | None:
        """The first id that the vocabulary does not have."""
        n_words = self._n_words
        return next((token for token in ids if not 0 <= token < n_words), None)

    @property
    def _n_words(self) -> int:
        n_words: int = self._tokenizer.get_vocab_size()
        return n_words

    def _prefix_ids(self, prefix: str) -> list[int]:
        """Ids of what stands before a text: a prefix ends where words are parted."""
        ids: list[int] = self._encode([_Piece(prefix, len(prefix))])[0].ids
        return ids

    def _encode(self, pieces: Sequence[_Piece]) -> list[Encoding]:
        # Batch calls release the GIL, single ones do not.
        return self._tokenizer.encode_batch_fast(
            [piece.characters for piece in pieces], add_special_tokens=False
        )

    def _finished(
        self, front: Sequence[int], kept: Sequence[int], n_tokens: int, limit: int, cut: Cut
    ) -> TokenizedText:
        """The text of `n_tokens`, of which `kept` are at least those that fit behind `front`."""
        start, separator = self._ends
        n_around = len(self._ends) + len(front)
        n_tokens += n_around
        if cut == "start":
            kept = kept[max(0, len(kept) + n_around - limit) :]
        ids = np.array([start, *front, *kept, separator], np.int64)
        if n_tokens > limit:
            ids = ids[:limit]
            ids[-1] = separator
        return TokenizedText(ids, n_tokens)

    def _batches(self, texts: Iterable[str], prefix: str) -> Iterator[list[_Piece]]:
        pieces: list[_Piece] = []
        n_read = 0
        for text in texts:
            for piece in self._pieces(text, prefix):
                if pieces and n_read + piece.n_read > STEP_CHARACTERS:
                    yield pieces
                    pieces, n_read = [], 0
                pieces.append(piece)
                n_read += max(1, piece.n_read)
        if pieces:
            yield pieces

    def _pieces(self, text: str, prefix: str) -> Iterator[_Piece]:
        most = self._piece_characters
        if len(text) > most and prefix.endswith(" "):
            yield _Piece(prefix, len(prefix))  # no copy of the text with it in front
        else:
            text = prefix + text
        start = 0
        while len(text) - start > most:
            boundaries = find_boundaries(self._normalizer)
            cut = boundaries.last.match(text, start, start + most)
            if cut is not None:
                yield _Piece(cut[0], cut.end() - start)
                start = cut.end()
            elif text[start] == "[":
                yield _Piece("[", most)
                start += 1
            else:
                start = yield from self._long_word(text, start, boundaries)
        yield _Piece(text[start:], len(text) - start, ends_text=True)

    def _long_word(
        self, text: str, start: int, boundaries: Boundaries
    ) -> Generator[_Piece, None, int]:
        """A word from `start` that no piece holds; returns where it ends.

        What is left after normalisation stands for it, and of that no more than makes it unknown.
        Only marks that outlive normalisation, with a piece of others between them, might have been
        reordered in the whole; no vocabulary has such words.
        """
        word = ""
        end = None
        while end is None and start < len(text):
            end = boundaries.first.search(text, start, start + self._piece_characters)
            stop = end.start() if end else min(start + self._piece_characters, len(text))
            if len(word) <= MAX_WORD_CHARACTERS:
                word += self._tokenizer.normalizer.normalize_str(text[start:stop])
            yield _Piece("", stop - start)
            start = stop
        yield _Piece(word[: MAX_WORD_CHARACTERS + 1], 0)
        return start

    @property
    def ends(self) -> tuple[tuple[int, str], tuple[int, str]]:
        """Id and word of the special tokens before and after a text."""
        start, separator = self._ends
        word = self._tokenizer.id_to_token
        return (start, str(word(start))), (separator, str(word(separator)))

    def placed_pieces(self, text: str) -> Iterator[list[PlacedPiece]]:
        """The pieces of a text with their tokens, those of a step together."""
        for pieces in self._batches([text], ""):
            encodings = self._tokenizer.encode_batch(
                [piece.characters for piece in pieces], add_special_tokens=False
            )
            yield [
                PlacedPiece(piece.characters, piece.n_read, encoding.ids, encoding.offsets)
                for piece, encoding in zip(pieces, encodings, strict=True)
            ]

    def decode(self, ids: Sequence[int], *, skips_special: bool) -> str:
        """The words of ids as a text; normalisation is not undone.

        Raises TokenIdsError for ids that the vocabulary does not have.
        """
        if self._unknown(ids) is not None:
            raise TokenIdsError(
                f"this model's tokens have the ids 0 to {self._n_words - 1}, and other ids came; "
                "were they made by another tokenizer?"
            )
        # A call for one list would hold the interpreter's lock for as long as it takes.
        texts: list[str] = self._tokenizer.decode_batch([ids], skip_special_tokens=skips_special)
        return texts[0]

    def text_of(self, ids: Sequence[int]) -> str:
        """A text that ids come from, without the special tokens at its ends. Raises as `decode`."""
        start, separator = self._ends
        inner = ids[1:] if ids and ids[0] == start else ids
        inner = inner[:-1] if inner and inner[-1] == separator else inner
        return self.decode(inner, skips_special=False)


@cache
def find_boundaries(normalizer: Normalizer) -> Boundaries:
    """What parts words for the library: asked of itself, since Unicode's tables differ by version.

    A cut is made after such a character, but before "[", with which a special token may begin.
    Takes tens of milliseconds, so it waits for the first long text.
    """
    normalize, pre_tokenizer = _bert_normalizer(normalizer).normalize_str, BertPreTokenizer()
    # Of the characters that are no letters, numbers or controls; beyond are ideographs only.
    candidates = [
        character
        for character in map(chr, range(0x20000))
        if unicodedata.category(character)[0] not in "LNC" or character in "\t\n\r"
    ]
    parting = [
        re.escape(character)
        for character in candidates
        if len(pre_tokenizer.pre_tokenize_str(normalize(f"x{character}x"))) > 1
    ]
    after = "".join(parting).replace(re.escape("["), "") + IDEOGRAPHS
    return Boundaries(
        first=re.compile(rf"[{after}\[]"), last=re.compile(rf".*(?:[{after}]|.(?=\[))", re.DOTALL)
    )


def _bert_normalizer(normalizer: Normalizer) -> BertNormalizer:
    return BertNormalizer(lowercase=normalizer.lowercase, strip_accents=normalizer.strip_accents)


def _build(vocabulary: Vocabulary) -> Tokenizer:
    words, special = vocabulary.words, vocabulary.special
    tokenizer = Tokenizer(
        WordPiece(
            dict(vocabulary.ids),
            unk_token=words[special[UNKNOWN]],
            max_input_chars_per_word=MAX_WORD_CHARACTERS,
        )
    )
    tokenizer.normalizer = _bert_normalizer(vocabulary.normalizer)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.decoder = WordPieceDecoder()
    named = [words[index] for index in special.values()]
    tokenizer.add_special_tokens([token for token in named if READ_IN_TEXTS.fullmatch(token)])
    return tokenizer
