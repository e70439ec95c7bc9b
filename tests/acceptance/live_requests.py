"""Requests over HTTP without end, from several threads, and what each was answered.

For what happens beside them: who has to wait, for how long, and with which answer.
"""

import math
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from time import monotonic
from types import TracebackType
from typing import Any, Self

import httpx

from tests.acceptance.patient import DEADLINE_S

Request = tuple[str, dict[str, Any]]
"""Path and JSON body of a POST."""


@dataclass(frozen=True)
class Answer:
    """To one request. status: 0 where there was no answer."""

    request: Request
    began_s: float
    seconds: float
    status: int
    reply: dict[str, Any]

    @property
    def ended_s(self) -> float:
        """When it was there, on the clock of `monotonic`."""
        return self.began_s + self.seconds

    @property
    def is_dense(self) -> bool:
        """Whether vectors answered."""
        kind = self.reply.get("mode") or self.reply.get("kind")
        return self.status == 200 and kind == "dense"


class LiveRequests:
    """Sends requests, one after another in each thread; owns the threads and the answers.

    pause_s: between an answer and the thread's next request.
    """

    def __init__(
        self, url: str, requests: Sequence[Request], n_threads: int = 3, pause_s: float = 0.01
    ) -> None:
        self.answers: list[Answer] = []
        self._url = url
        self._requests = requests
        self._pause_s = pause_s
        self._numbers = count()
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._send) for _ in range(n_threads)]

    def between(self, begin_s: float, end_s: float) -> list[Answer]:
        """Answers to what was under way at some moment between two."""
        return [one for one in self.answers[:] if one.ended_s >= begin_s and one.began_s <= end_s]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _send(self) -> None:
        with httpx.Client(base_url=self._url, timeout=DEADLINE_S, trust_env=False) as client:
            while not self._ended.wait(self._pause_s):
                request = self._requests[next(self._numbers) % len(self._requests)]
                path, body = request
                began_s = monotonic()
                try:
                    answer = client.post(path, json=body)
                    status, reply = answer.status_code, answer.json()
                except (httpx.HTTPError, ValueError) as error:
                    status, reply = 0, {"error": repr(error)}
                seconds = monotonic() - began_s
                self.answers.append(Answer(request, began_s, seconds, status, reply))


def slowest_s(answers: Iterable[Answer]) -> float:
    """Seconds of the one that took longest."""
    return max(one.seconds for one in answers)


def p99_s(answers: Iterable[Answer]) -> float:
    """Seconds that 99 of 100 did not exceed (nearest rank)."""
    seconds = sorted(one.seconds for one in answers)
    return seconds[math.ceil(0.99 * len(seconds)) - 1]
