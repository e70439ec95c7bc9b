"""Work in a thread that is dropped."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from plimsoll.serving.threads import run_in, run_until_dropped


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


def test_who_is_cancelled_twice_waits_for_the_thread_all_the_same():
    """Until it ends, what it works on is in use: memory given back before would be given twice."""
    begun, may_end, ends = Event(), Event(), list[str]()

    def work() -> None:
        begun.set()
        may_end.wait(60)
        ends.append("thread")

    async def play() -> None:
        with ThreadPoolExecutor(1) as thread:
            running = asyncio.create_task(run_in(thread, work))
            running.add_done_callback(lambda _: ends.append("caller"))
            await asyncio.to_thread(begun.wait)
            for _ in range(2):
                running.cancel()
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            may_end.set()
            with pytest.raises(asyncio.CancelledError):
                await running

    asyncio.run(play())
    assert ends == ["thread", "caller"]
