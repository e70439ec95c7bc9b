"""What a GGUF file says of its WordPiece vocabulary: words, normaliser, special tokens.

Pure: metadata in, a description out; the tokenizer is built from it elsewhere.

llama.cpp stores BERT vocabularies with the *phantom space*: a token that starts a word
carries "▁" in front, a continuation stands bare (in the original vocabulary: bare, and
"##" in front). Special tokens stand as they are.

Where the file does not say whether its text is lower-cased and stripped of accents, its words
do: a vocabulary holds next to no word that its own normaliser would change, since such a word
never occurs. Up to MOST_ODD_RATIO of the words with Latin letters may be odd ones.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plimsoll.errors import ModelUnsupportedError

PHANTOM_SPACE = "\u2581"
CONTROL = 3  # gguf's TokenType.CONTROL
MOST_ODD_RATIO = 0.05

_LOWERCASE_KEY = "tokenizer.ggml.normalizer.lowercase"
_STRIP_ACCENTS_KEY = "tokenizer.ggml.normalizer.strip_accents"
_CAPITAL = re.compile("[A-Z]")
_LATIN = re.compile("[A-Za-z]")


@dataclass(frozen=True)
class Normalizer:
    """What is done to a text before it is parted into words."""

    lowercase: bool
    strip_accents: bool


START, SEPARATOR, UNKNOWN = "start", "separator", "unknown"
# The name of each special token, and the keys that hold its id. llama.cpp begins a text with
# `bos`; its converter writes the same id under `cls`. "seperator" is its spelling.
_SPECIAL: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "padding": ("[PAD]", ("padding_token_id",)),
    UNKNOWN: ("[UNK]", ("unknown_token_id",)),
    START: ("[CLS]", ("cls_token_id", "bos_token_id")),
    SEPARATOR: ("[SEP]", ("seperator_token_id",)),
    "mask": ("[MASK]", ("mask_token_id",)),
}
_NEEDED = (UNKNOWN, START, SEPARATOR)


@dataclass(frozen=True)
class Vocabulary:
    """Words in their original spelling, whose place is their id, and how texts become words."""

    words: Sequence[str]
    ids: Mapping[str, int]
    normalizer: Normalizer
    special: Mapping[str, int]  # ids of special tokens; START, SEPARATOR and UNKNOWN are there

    @property
    def sha256(self) -> str:
        """A hash of all that turns a text into ids.

        What most files have in common stands in it only where a file has it otherwise:
        accents are stripped where case is, and special tokens have their usual names.
        """
        normalizer = self.normalizer
        named: list[object] = ["WordPiece", not normalizer.lowercase, list(self.words)]
        if normalizer.strip_accents != normalizer.lowercase:
            named.append({"strip_accents": normalizer.strip_accents})
        if self.special != _by_name(self.ids):
            named.append({"special_tokens": dict(self.special)})
        return hashlib.sha256(json.dumps(named).encode()).hexdigest()


def read_vocabulary(metadata: Mapping[str, Any]) -> Vocabulary:
    """Read a WordPiece vocabulary.

    Raises ModelUnsupportedError for any other kind of tokenizer, and for a key with a value
    that cannot be.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if not isinstance(kind, str) or kind != "bert":
        raise ModelUnsupportedError(
            f"tokenizer {kind!r} is not supported; WordPiece is (tokenizer.ggml.model bert)"
        )
    words = original_vocabulary(
        metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.token_type")
    )
    ids = {word: index for index, word in enumerate(words)}
    normalizer = _read_normalizer(metadata, words)
    special = _read_special_tokens(metadata, len(words), _by_name(ids))
    return Vocabulary(words, ids, normalizer, special)


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
    if kind == CONTROL or _is_bracketed(token):
        return token
    # A lone mark is the continuation of "▁" itself: no word is empty.
    if token.startswith(PHANTOM_SPACE) and len(token) > 1:
        return token[1:]
    return "##" + token


def _is_bracketed(word: str) -> bool:
    return len(word) > 2 and word[0] == "[" and word[-1] == "]"


def _read_normalizer(metadata: Mapping[str, Any], words: Sequence[str]) -> Normalizer:
    """As the file says; where it does not, as its words say."""
    lowercase = _read_flag(metadata, _LOWERCASE_KEY)
    strip_accents = _read_flag(metadata, _STRIP_ACCENTS_KEY)
    if lowercase is None:
        guess = guess_normalizer(words)
        lowercase = guess.lowercase
        if strip_accents is None:
            strip_accents = guess.strip_accents
    # BERT's own rule, and llama.cpp's: accents go with case where only the case is named.
    return Normalizer(lowercase, lowercase if strip_accents is None else strip_accents)


def guess_normalizer(words: Sequence[str]) -> Normalizer:
    """The normaliser that leaves nearly all of these words as they are."""
    n_latin = n_capital = n_accented = 0
    for word in words:
        if word.isascii() and word.islower():  # most are, and are quickly told
            n_latin += 1
            continue
        if _is_bracketed(word):
            continue
        letters = word if word.isascii() else unicodedata.normalize("NFD", word)
        if _LATIN.search(letters) is None:
            continue
        n_latin += 1
        if _CAPITAL.search(word) is not None:
            n_capital += 1
        if any(unicodedata.category(c) == "Mn" for c in letters if not c.isascii()):
            n_accented += 1
    most_odd = MOST_ODD_RATIO * n_latin
    lowercase = n_capital <= most_odd
    return Normalizer(lowercase, strip_accents=lowercase and n_accented <= most_odd)


def _read_flag(metadata: Mapping[str, Any], key: str) -> bool | None:
    value = metadata.get(key)
    if value is not None and not isinstance(value, bool):
        raise ModelUnsupportedError(f"metadata {key} is {value!r}, not true or false")
    return value


def _read_special_tokens(
    metadata: Mapping[str, Any], n_words: int, usual: Mapping[str, int]
) -> dict[str, int]:
    """By the ids that the file says; those that it does not say by their usual names."""
    special = dict(usual)
    for role, (_, keys) in _SPECIAL.items():
        held = _read_id(metadata, keys, n_words)
        if held is not None:
            special[role] = held
    missing = [_SPECIAL[role] for role in _NEEDED if role not in special]
    if missing:
        raise ModelUnsupportedError(
            f"the vocabulary has no {', '.join(name for name, _ in missing)}, and no metadata "
            f"tokenizer.ggml.{missing[0][1][0]} says which token that is"
        )
    return special


def _by_name(ids: Mapping[str, int]) -> dict[str, int]:
    return {role: ids[name] for role, (name, _) in _SPECIAL.items() if name in ids}


def _read_id(metadata: Mapping[str, Any], keys: Sequence[str], n_words: int) -> int | None:
    """The id that one of the keys holds; None where none of them is there."""
    held: dict[str, int] = {}
    for key in (f"tokenizer.ggml.{key}" for key in keys):
        value = metadata.get(key)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < n_words:
            raise ModelUnsupportedError(
                f"metadata {key} is {value!r}, not the id of one of {n_words} tokens"
            )
        held[key] = value
    if len(set(held.values())) > 1:
        said = " and ".join(f"{key} {value}" for key, value in held.items())
        raise ModelUnsupportedError(f"metadata {said} name two tokens for one place")
    return next(iter(held.values()), None)
