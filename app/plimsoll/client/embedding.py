"""Texts to vectors in requests that the server has room for, joined in the texts' order."""

from base64 import b64decode
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

import numpy as np
import orjson

from plimsoll.client.asking import Ask, Patience, Steps, as_json, ask
from plimsoll.client.replies import (
    Degraded,
    Embeddings,
    SparseEmbeddings,
    SparseVector,
    TextError,
    Truncated,
    degraded_of,
    reading,
    records,
)
from plimsoll.errors import InvalidRequestError, RefusedError, ServerError

Fallback = Literal["none", "bm25"]

LIST_TEXTS = 256
LIST_BYTES = 960 << 10  # of texts as JSON; the least PLIMSOLL_BODY_LIMIT is 1 MiB
TOO_LARGE = 413


class EmbedOptions(TypedDict, total=False):
    """What may be said of a list; what is left out is as the server has it.

    input_type: search_document, search_query, classification or clustering: the task's prefix.
    dimensions: values a vector. truncate: False refuses a text that is too long. model: a name.
    """

    input_type: str | None
    dimensions: int | None
    truncate: bool | None
    model: str | None


def embed(
    texts: str | Sequence[str],
    options: EmbedOptions,
    fallback: Fallback,
    headers: Mapping[str, str],
    patience: Patience,
) -> Steps[Embeddings | SparseEmbeddings]:
    """Ask for every text. Words stand for none of them, or, with `fallback` bm25, for all.

    Raises InvalidRequestError for a text that is not Unicode; RefusedError and NoAnswerError,
    whose `answered` has the vectors of the texts before.
    """
    given = [texts] if isinstance(texts, str) else texts
    written = [_written(index, text) for index, text in enumerate(given)]
    dense = {"encoding_format": "base64", "fallback": fallback, **options}
    joined = _Joined(len(written))
    most = LIST_TEXTS
    while True:
        part = _list(written, joined.n_done, most)
        degraded = None
        try:
            answer = yield from ask(_request(part, dense, headers), patience)
            with reading():
                degraded = degraded_of(answer)
                if degraded is None:
                    joined.add(answer, len(part))
                elif len(part) == len(written):
                    return _sparse(answer["fingerprint"], answer["sparse"], degraded)
        except RefusedError as refused:
            if refused.status != TOO_LARGE:
                joined.note(refused)
                raise
            if len(part) > 1:
                most = len(part) // 2
                continue
            joined.leave_out(refused)
        except ServerError as error:
            joined.note(error)
            raise
        if degraded is not None:
            return (yield from _words(written, options, headers, degraded, patience, most))
        if joined.n_done >= len(written):
            return joined.embeddings()


class _Joined:
    """Owns what has been answered of a list, in its order."""

    def __init__(self, n_texts: int) -> None:
        self.n_done = 0
        self._n_texts = n_texts
        self._vectors: np.ndarray | None = None  # float32 (texts, dimensions)
        self._first: Mapping[str, Any] = {}
        self._refused: RefusedError | None = None
        self._n_tokens = 0
        self._truncated = list[Truncated]()
        self._errors = list[TextError]()
        self._warnings = dict[str, None]()

    def add(self, answer: Mapping[str, Any], n_texts: int) -> None:
        """Take the answer of the next texts.

        Raises RefusedError for another space than before, KeyError, TypeError and ValueError for
        what is no such answer.
        """
        vectors = self._rows_of(answer)
        start = self.n_done
        rows = vectors[start : start + n_texts]
        for row, sent in zip(rows, answer["embeddings"], strict=True):
            if sent is not None:
                row[:] = np.frombuffer(b64decode(sent), "<f4")
        self.n_done += n_texts
        self._n_tokens += answer["usage"]["tokens"]
        self._truncated += [
            Truncated(start + one.index, one.tokens, one.kept)
            for one in records(Truncated, answer["truncated"])
        ]
        self._errors += [
            TextError(start + one.index, one.code, one.message)
            for one in records(TextError, answer["errors"])
        ]
        self._warnings |= dict.fromkeys(answer["warnings"])

    def leave_out(self, refused: RefusedError) -> None:
        """Take the refusal of the next text, which is too large alone."""
        self._errors.append(TextError(self.n_done, refused.code or "too_large", str(refused)))
        self._refused = refused
        self.n_done += 1

    def note(self, error: ServerError) -> None:
        """Give an error what was answered before it."""
        if self._vectors is not None:
            error.answered = self.embeddings()

    def embeddings(self) -> Embeddings:
        """What was answered so far. Raises RefusedError where that is nothing at all."""
        if self._vectors is None:
            raise self._refused or RefusedError("the server answered with no vectors")
        return Embeddings(
            self._vectors[: self.n_done],
            self._first["model"],
            self._first["fingerprint"],
            self._first["compute"],
            self._n_tokens,
            tuple(self._truncated),
            tuple(self._errors),
            tuple(self._warnings),
        )

    def _rows_of(self, answer: Mapping[str, Any]) -> np.ndarray:
        """Room for all vectors, made for the first answer."""
        if self._vectors is None:
            shape = (self._n_texts, answer["dimensions"])
            self._vectors = np.full(shape, np.nan, np.float32)
            self._first = answer
        if answer["fingerprint"] != self._first["fingerprint"]:
            raise RefusedError(
                f"the server's model has changed from {self._first['fingerprint']} to "
                f"{answer['fingerprint']} within one list: embed all of it again",
                code="space_mismatch",
            )
        return self._vectors


def _words(
    written: Sequence[bytes],
    options: EmbedOptions,
    headers: Mapping[str, str],
    degraded: Degraded,
    patience: Patience,
    most: int,
) -> Steps[SparseEmbeddings]:
    """All texts by their words: some had vectors, but a reply has one kind.

    most: texts that the server takes in one request.
    """
    of_words = {"encoder": "bm25", **options}
    rows = list[Mapping[str, Any]]()
    while True:
        part = _list(written, len(rows), most)
        answer = yield from ask(_request(part, of_words, headers), patience)
        with reading():
            if len(answer["sparse"]) != len(part):
                raise ValueError(f"{len(answer['sparse'])} vectors of {len(part)} texts")
            rows += answer["sparse"]
            if len(rows) >= len(written):
                return _sparse(answer["fingerprint"], rows, degraded)


def _sparse(
    fingerprint: str, rows: Sequence[Mapping[str, Any]], degraded: Degraded
) -> SparseEmbeddings:
    vectors = (SparseVector(tuple(row["indices"]), tuple(row["values"])) for row in rows)
    return SparseEmbeddings(tuple(vectors), fingerprint, degraded)


def _request(part: Sequence[bytes], options: Mapping[str, Any], headers: Mapping[str, str]) -> Ask:
    given = {name: value for name, value in options.items() if value is not None}
    body = {"input": [orjson.Fragment(text) for text in part], **given}
    return Ask("POST", "/embed", as_json(body, "options"), headers)


def _list(written: Sequence[bytes], start: int, most: int) -> Sequence[bytes]:
    """The texts from `start` that go into one request: one at least, where there is one."""
    n_bytes, end = 0, start
    while end < min(start + most, len(written)):
        n_bytes += len(written[end]) + 1
        if n_bytes > LIST_BYTES and end > start:
            break
        end += 1
    return written[start:end]


def _written(index: int, text: str) -> bytes:
    """A text as JSON. Raises InvalidRequestError."""
    if not isinstance(text, str):
        raise InvalidRequestError(f"text {index} is no string: {type(text)}", param="texts")
    return as_json(text, f"text {index}")
