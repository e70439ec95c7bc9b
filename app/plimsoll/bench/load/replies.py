"""What a reply was: its content as far as it counts, and the verdict over it.

The shape is that of POST /embed (app/plimsoll/api/dialects/native.py). A small reply is parsed
whole. Of a big one no more is kept than a window: its kind stands in its head, its vectors are
counted by their brackets, its tokens stand in `usage`.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

import orjson

from plimsoll.bench.load.bodies import Body
from plimsoll.bench.load.samples import Samples

SMALL_REPLY_BYTES = 64 * 1024
HEAD_BYTES = 256
HELD_BYTES = 64  # longer than `usage` and its number
NO_ROUTE = "POST /embed is not there: --url is where Plimsoll listens, or a proxy's path to it"
# What helps against an answer that every further request would get as well.
REMEDIES = {
    401: "the server asks for a key: give --header 'Authorization: Bearer KEY'",
    403: "the server does not let this client in: see the --header that are sent, and --url",
    404: NO_ROUTE,
    405: NO_ROUTE,
}
KIND = re.compile(rb'"kind":\s*"(dense|sparse)"')
USAGE = re.compile(rb'"usage":\s*\{"tokens":\s*(\d+)\}')


class Outcome(StrEnum):
    """What became of a request."""

    DENSE = "dense"
    SPARSE = "sparse"  # the fallback's answer
    REFUSED = "refused"  # 429, 413, or 503 with Retry-After: on purpose
    REJECTED = "rejected"  # a malformed body's 4xx, as due
    FAILED = "failed"  # no reply, or a wrong one
    HUNG_UP = "hung_up"  # by this client


@dataclass(frozen=True)
class Verdict:
    """An outcome and what is counted with it."""

    outcome: Outcome
    cause: str = ""
    n_tokens: int = 0
    retry_after_s: int | None = None
    timed_out: bool = False


def remedy_of(cause: str) -> str:
    """What helps against a cause that would be that of every request; empty for any other."""
    status, _, _ = cause.partition(" ")
    return REMEDIES.get(int(status), "") if status.isdecimal() else ""


class MalformedReplyError(Exception):
    """A reply of status 200 that is not what POST /embed answers."""


@dataclass(frozen=True)
class Content:
    """What a reply of status 200 says."""

    kind: Literal["dense", "sparse"]
    n_answers: int | None  # vectors, or sparse ones; None: not counted
    n_tokens: int = 0
    first_vector: list[float] | None = None


class ReplyReader:
    """Takes a reply's chunks. Owns the body of a small reply, and a window of a big one."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._scan: _BigReplyScan | None = None

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""
        if self._scan is not None:
            self._scan.feed(chunk)
            return
        self._kept += chunk
        if len(self._kept) > SMALL_REPLY_BYTES:
            self._scan = _BigReplyScan(bytes(self._kept))
            self._kept.clear()

    def content(self) -> Content:
        """What the whole reply says. Raises MalformedReplyError."""
        return self._scan.content() if self._scan else _parse(bytes(self._kept))

    def error_code(self) -> str:
        """The `error.code` of a reply that is an error; empty where there is none."""
        try:
            document: Any = orjson.loads(self._kept)
        except orjson.JSONDecodeError:
            return ""
        match document:
            case {"error": {"code": str(code)}}:
                return code
        return ""


class _BigReplyScan:
    """Counts in passing; every byte is looked at once."""

    def __init__(self, start: bytes) -> None:
        kind = KIND.search(start[:HEAD_BYTES])
        self._kind = kind[1].decode() if kind else ""
        self._n_brackets = 0
        self._n_tokens: int | None = None
        self._held = b""
        self.feed(start)

    def feed(self, chunk: bytes) -> None:
        window = self._held + chunk
        self._held = window[-HELD_BYTES:]
        if self._n_tokens is not None:
            return
        if usage := USAGE.search(window):
            self._n_tokens = int(usage[1])
            self._n_brackets += window.count(b"[", 0, usage.start())
        else:
            self._n_brackets += window.count(b"[", 0, len(window) - len(self._held))

    def content(self) -> Content:
        if not self._held.endswith(b"}"):
            raise MalformedReplyError("reply breaks off")
        if self._kind == "sparse":
            return Content("sparse", None)
        if self._kind != "dense" or self._n_tokens is None:
            raise MalformedReplyError("reply of another shape")
        n_vectors = self._n_brackets - 1  # one is the list's own
        return Content("dense", n_vectors, self._n_tokens)


def _parse(body: bytes) -> Content:
    try:
        document: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise MalformedReplyError("reply is not JSON") from None
    match document:
        case {"kind": "dense", "embeddings": list(rows), "usage": {"tokens": int(n_tokens)}}:
            vectors = [row for row in rows if isinstance(row, list) and row]
            return Content("dense", len(vectors), n_tokens, vectors[0] if vectors else None)
        case {"kind": "sparse", "sparse": list(rows), "degraded": reason} if reason:
            return Content("sparse", len(rows))
    raise MalformedReplyError("reply of another shape")


@dataclass(frozen=True)
class Answer:
    """A reply as it came in."""

    status: int
    retry_after_s: int | None
    reader: ReplyReader


def judge(body: Body, answer: Answer, samples: Samples | None = None) -> Verdict:
    """The verdict over the answer to `body`; a verified text's vector is compared."""
    status, retry_after_s = answer.status, answer.retry_after_s
    if status in (413, 429) or (status == 503 and retry_after_s is not None):
        cause = f"{status} {answer.reader.error_code()}".rstrip()
        return Verdict(Outcome.REFUSED, cause, retry_after_s=retry_after_s)
    if body.n_texts == 0 and status not in REMEDIES:
        if 400 <= status < 500:
            return Verdict(Outcome.REJECTED)
        return Verdict(Outcome.FAILED, f"malformed request answered with {status}")
    if status == 503:
        return Verdict(Outcome.FAILED, "503 without Retry-After")
    if status != 200:
        return Verdict(Outcome.FAILED, f"{status} {answer.reader.error_code()}".rstrip())
    try:
        content = answer.reader.content()
    except MalformedReplyError as error:
        return Verdict(Outcome.FAILED, str(error))
    if content.n_answers not in (None, body.n_texts):
        return Verdict(Outcome.FAILED, f"{content.kind} reply with answers missing")
    if content.kind == "sparse":
        return Verdict(Outcome.SPARSE)
    if (
        samples is not None
        and body.sample is not None
        and not samples.agree(body.sample, content.first_vector)
    ):
        return Verdict(Outcome.FAILED, "wrong vector")
    return Verdict(Outcome.DENSE, n_tokens=content.n_tokens)
