"""Work in a thread or in a group of tasks, waited for to its end."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from functools import partial
from typing import ParamSpec, TypeVar

DROP_EVERY_S = 1.0

P = ParamSpec("P")
T = TypeVar("T")


async def run_in(
    thread: Executor | None, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Do some work, in the thread where one is given.

    A caller that is cancelled, however often, waits for the thread's end first: the thread cannot
    be cancelled, and until its end the memory that it works on is in use.
    """
    if thread is None:
        return work(*args, **kwargs)
    return await run_until_dropped(thread, partial(work, *args, **kwargs), lambda: None)


async def run_until_dropped(
    thread: Executor, work: Callable[[], T], drop: Callable[[], object]
) -> T:
    """Likewise; `drop` is called where the caller is cancelled, for the work to end soon.

    It is called again until the work has ended.
    """
    job = thread.submit(work)
    result = asyncio.wrap_future(job)
    try:
        await asyncio.wait((result,))
    except asyncio.CancelledError:
        if not job.cancel():
            while not result.done():  # between two parts of the work nothing hears of it
                drop()
                with suppress(asyncio.CancelledError):  # again, which ends the thread no sooner
                    await asyncio.wait((result,), timeout=DROP_EVERY_S)
            result.exception()  # asked for, or asyncio would log that it never was
        raise
    return result.result()


@contextmanager
def first_error() -> Iterator[None]:
    """Raise the first error of a task group as itself, where there is to be one reason."""
    try:
        yield
    except BaseExceptionGroup as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None
