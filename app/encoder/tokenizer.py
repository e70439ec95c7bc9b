"""WordPiece from a GGUF file's own vocabulary.

llama.cpp stores BERT vocabularies with the *phantom space*: a token that starts a word
carries "▁" in front, a continuation stands bare (in the original vocabulary: bare, and
"##" in front). Special tokens stand as they are. Undoing that and handing the vocabulary to
the `tokenizers` library gives the ids of the model's original tokenizer.

GGUF does not record whether the model is cased; a vocabulary that has no upper-case
letter outside its special tokens belongs to an uncased model.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from app.errors import ModelUnsupportedError

PHANTOM_SPACE = "\u2581"
CONTROL = 3  # gguf's TokenType.CONTROL
# What WordPiece's reference implementation gives up on, as one unknown token.
MAX_WORD_CHARACTERS = 100
UNKNOWN = "[UNK]"
SPECIAL_TOKENS = ("[PAD]", UNKNOWN, "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True)
class TokenizedText:
    """One text's ids, cut to the limit, and how many there would have been."""

    ids: np.ndarray  # int64 (kept,)
    n_tokens: int

    @property
    def truncated(self) -> bool:
        """Whether tokens were cut off."""
        return self.n_tokens > len(self.ids)


class WordPieceTokenizer:
    """Turns texts into ids between [CLS] and [SEP]; read-only after construction."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        """Read the vocabulary. Raises ModelUnsupportedError for any other kind of tokenizer."""
        kind = metadata.get("tokenizer.ggml.model")
        if not isinstance(kind, str) or kind != "bert":
            raise ModelUnsupportedError(f"tokenizer {kind!r} is not supported; WordPiece (bert) is")
        words = original_vocabulary(
            metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type")
        )
        vocabulary = {word: index for index, word in enumerate(words)}
        missing = [token for token in ("[UNK]", "[CLS]", "[SEP]") if token not in vocabulary]
        if missing:
            raise ModelUnsupportedError(f"the vocabulary has no {', '.join(missing)}")
        self.n_words = len(words)
        cased = _is_cased(words)
        named = json.dumps(["WordPiece", cased, words]).encode()
        self.vocabulary_sha256 = hashlib.sha256(named).hexdigest()
        self._separator = vocabulary["[SEP]"]
        self._tokenizer = _build(vocabulary, cased=cased)

    def tokenize(self, texts: Sequence[str], limit: int) -> list[TokenizedText]:
        """Ids of each text, with the last one kept [SEP] where it was cut to `limit`.

        A text without any token of its own has two ids, [CLS] and [SEP].
        """
        # Batch calls release the GIL, single ones do not.
        encodings = self._tokenizer.encode_batch_fast(list(texts))
        return [self._cut(np.asarray(encoding.ids, np.int64), limit) for encoding in encodings]

    def _cut(self, ids: np.ndarray, limit: int) -> TokenizedText:
        if len(ids) <= limit:
            return TokenizedText(ids, len(ids))
        kept = ids[:limit].copy()
        kept[-1] = self._separator
        return TokenizedText(kept, len(ids))


def original_vocabulary(tokens: Any, types: Any) -> list[str]:
    """Undo the phantom space; the list index is the id."""
    if not isinstance(tokens, list) or not tokens:
        raise ModelUnsupportedError("the file has no vocabulary (tokenizer.ggml.tokens)")
    kinds = np.ones(len(tokens), np.int32) if types is None else np.asarray(types)
    if kinds.shape != (len(tokens),) or kinds.dtype.kind not in "iu":
        raise ModelUnsupportedError(
            f"the file's {len(tokens)} tokens do not have a type each (tokenizer.ggml.token_type)"
        )
    return [_original(token, kind) for token, kind in zip(tokens, kinds.tolist(), strict=True)]


def _original(token: str, kind: int) -> str:
    if kind == CONTROL or (len(token) > 2 and token[0] == "[" and token[-1] == "]"):
        return token
    # A lone mark is the continuation of "▁" itself: no word is empty.
    if token.startswith(PHANTOM_SPACE) and len(token) > 1:
        return token[1:]
    return "##" + token


def _is_cased(words: Sequence[str]) -> bool:
    return any(
        word != word.lower() and not (word.startswith("[") and word.endswith("]"))
        for word in words
        if word.isascii()
    )


def _build(vocabulary: dict[str, int], *, cased: bool) -> Tokenizer:
    tokenizer = Tokenizer(
        WordPiece(vocabulary, unk_token=UNKNOWN, max_input_chars_per_word=MAX_WORD_CHARACTERS)
    )
    tokenizer.normalizer = BertNormalizer(lowercase=not cased)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.decoder = WordPieceDecoder()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.add_special_tokens([token for token in SPECIAL_TOKENS if token in vocabulary])
    return tokenizer
