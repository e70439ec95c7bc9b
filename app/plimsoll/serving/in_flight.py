"""Texts that are being computed: one that comes again before its end waits for the same row.

Equal are texts of the same ids, model, dimensions and form, and of one class: a query does not
wait in the turn of a list. Each waiter has a future and a row of its own; where the text is refused
or fails, all who wait for it are told so, however long each has waited.
"""

import asyncio
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

from plimsoll.serving.rows import Row

Waiter: TypeAlias = "asyncio.Future[Row]"


@dataclass(eq=False)
class _Computation:
    row: Waiter  # that the engine sets
    waiters: list[Waiter] = field(default_factory=list)
    n_left: int = 0  # of them, who still wait


class InFlight:
    """Owns which texts are being computed, and who waits for each."""

    def __init__(self) -> None:
        self._by_text: dict[Hashable, _Computation] = {}

    def wait_for(self, text: Hashable, waiter: Waiter, compute: Callable[[Waiter], None]) -> bool:
        """Let `waiter` have the row of `text`; where none is on its way, have it computed.

        text: names all that the row depends on, and the event loop of the waiter.
        compute: is given the future of the row, which is cancelled when all waiters are.
        Returns whether the text was on its way already.
        """
        found = self._by_text.get(text)
        was_there = found is not None and not found.row.done()
        if found is None or not was_there:
            found = _Computation(waiter.get_loop().create_future())
            compute(found.row)
            self._by_text[text] = found
            found.row.add_done_callback(partial(self._share, text, found))
        found.waiters.append(waiter)
        found.n_left += 1
        waiter.add_done_callback(partial(_leave, found))
        return was_there

    def _share(self, text: Hashable, computation: _Computation, row: Waiter) -> None:
        """Give every waiter what has become of the row."""
        if self._by_text.get(text) is computation:
            del self._by_text[text]
        is_given = False
        for waiter in computation.waiters:
            if waiter.done():
                continue
            if row.cancelled():
                waiter.cancel()
            elif (error := row.exception()) is not None:
                waiter.set_exception(error)
            else:
                waiter.set_result(row.result().copy() if is_given else row.result())
                is_given = True


def _leave(computation: _Computation, _: Waiter) -> None:
    """Let the engine skip a text that every waiter has given up; one that has run stays done."""
    computation.n_left -= 1
    if not computation.n_left:
        computation.row.cancel()
