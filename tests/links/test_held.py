"""A link that is held for a move: it is not waited for for ever."""

import asyncio
from collections.abc import Callable
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

from plimsoll.corpora.records import Space
from plimsoll.errors import OutsideUnavailableError
from plimsoll.links import held, steps
from plimsoll.links.held import MOST_CATCHING_UP_S, HeldLink

SPACE = Space("v1:a", 2, "small")
PART_S = 60.0


class BusyWork:
    """A link whose rows change as quickly as they are taken in, and whose indexes take long."""

    name, waits = "ships", None

    def __init__(self) -> None:
        self.n_steps = 0
        self.outside = SimpleNamespace(finish=None)
        self.having = None
        self.goes_on = asyncio.Event()

    async def read(self, work: Callable[..., Any], *_: object) -> Any:
        answers = {steps.linked: (None, SimpleNamespace(follows=True)), steps.n_waiting: 7}
        return answers[work]

    async def step(self) -> tuple[bool, bool]:
        self.n_steps += 1
        return True, True

    async def run(self, *_: object) -> None:
        await self.goes_on.wait()


def test_a_move_ends_where_writers_are_quicker(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(held, "monotonic", count(0.0, PART_S).__next__)

    async def play() -> None:
        work = BusyWork()
        link = HeldLink(work)  # type: ignore[arg-type]
        link.be_quick()
        with pytest.raises(OutsideUnavailableError, match=r"change as quickly .* and 7 vectors"):
            await link.catch_up(SPACE)
        assert work.n_steps == MOST_CATCHING_UP_S / PART_S + 1

    asyncio.run(play())


def test_a_move_ends_where_indexes_take_long(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(held, "STEP_S", 0.01)

    async def caught_up(self: HeldLink, *_: object) -> None:
        pass

    monkeypatch.setattr(HeldLink, "catch_up", caught_up)

    async def play() -> None:
        link = HeldLink(BusyWork())  # type: ignore[arg-type]
        link.be_quick()
        with pytest.raises(OutsideUnavailableError, match="indexes could not be brought up"):
            await link.finish(SPACE)

    asyncio.run(play())
