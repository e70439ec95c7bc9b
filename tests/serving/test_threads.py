"""Work in a thread that is dropped."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from plimsoll.serving.threads import run_until_dropped


def test_work_that_does_not_hear_the_first_time_is_dropped_again():
    """A statement that had not begun is not cancelled, and the one behind it may take an hour."""
    begun, heard, n_drops = Event(), Event(), 0

    def work() -> None:
        begun.set()
        heard.wait(60)

    def drop() -> None:
        nonlocal n_drops
        n_drops += 1
        if n_drops == 2:
            heard.set()

    async def play() -> None:
        with ThreadPoolExecutor(1) as thread:
            running = asyncio.create_task(run_until_dropped(thread, work, drop))
            await asyncio.to_thread(begun.wait)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

    asyncio.run(play())
    assert n_drops == 2
