"""Steps of a call, done without a socket or a sleep: on a clock that jumps."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import orjson

from plimsoll.client.asking import Answer, Ask, OnWait, Patience, Pause, Steps
from plimsoll.errors import NoAnswerError

T = TypeVar("T")


def answer(content: object, status: int = 200, **headers: str) -> Answer:
    """An answer in JSON; a header's name is written with `_`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, named, orjson.dumps(content))


def refusal(status: int, code: str, **headers: str) -> Answer:
    """An error in the shape that Plimsoll's have."""
    return answer({"error": {"message": f"it is {code}", "code": code}}, status, **headers)


@dataclass
class Driven:
    """Owns the clock, and what was sent and waited for. `reply` answers, or raises NoAnswerError.

    request_s: how long a request takes.
    """

    reply: Callable[[Ask], Answer]
    request_s: float = 0.0
    now_s: float = 100.0
    sent: list[Ask] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)

    def patience(
        self, deadline_s: float, max_retries: int | None = None, on_wait: OnWait | None = None
    ) -> Patience:
        """Of a call that begins now."""
        return Patience(deadline_s, max_retries, on_wait, lambda: self.now_s)

    def run(self, steps: Steps[T]) -> T:
        """What the steps come to."""
        try:
            step = next(steps)
            while True:
                if isinstance(step, Pause):
                    self.pauses.append(step.seconds)
                    self.now_s += step.seconds
                    step = steps.send(None)
                    continue
                self.sent.append(step)
                self.now_s += self.request_s
                try:
                    found = self.reply(step)
                except NoAnswerError as lost:
                    step = steps.throw(lost)
                else:
                    step = steps.send(found)
        except StopIteration as end:
            return end.value
