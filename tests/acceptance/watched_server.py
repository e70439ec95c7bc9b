"""Servers whose status page a test opens: a process of its own, or a thread of this one."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from plimsoll.composition.application import create_app
from plimsoll.machine.memory import MIB, MemoryMonitor
from plimsoll.settings import Settings
from tests.browser import Browser
from tests.running_server import RunningServer

BUDGET_MIB = 256
# True once the page has shown numbers.
READY = "document.getElementById('used').textContent"


def limited(folder: Path, cache: Path, *options: str) -> RunningServer:
    """A server in a process of its own with a small budget."""
    budget = ("--memory-budget", f"{BUDGET_MIB}M")
    return RunningServer(folder, "--cache-dir", str(cache), *budget, *options)


@contextmanager
def serving_here(settings: Settings) -> Iterator[str]:
    """A server in a thread of this process, whose memory and engine a test can reach."""
    listening = socket.create_server(("127.0.0.1", 0))
    # uvicorn's own default ends idle connections after 5 s, which a test may just pass.
    config = uvicorn.Config(
        create_app(settings), log_config=None, timeout_keep_alive=settings.keep_alive_s
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def budget_mib(used_ratio: float) -> int:
    """A budget of which this process uses about so much before it serves."""
    return round(MemoryMonitor().sample().used_bytes / MIB / used_ratio)


def rank(browser: Browser, query: str) -> None:
    """Write a query into the page's box and press Enter."""
    browser.evaluate("document.getElementById('ranking').replaceChildren()")
    browser.evaluate("document.getElementById('query').select()")
    browser.call("Input.insertText", text=query)
    browser.press("Enter", 13, "\r")
    browser.wait_for("document.querySelectorAll('#ranking li').length === 8")


def ranked(browser: Browser) -> list[tuple[str, str]]:
    """Documents and the score beside each, in the order of the list."""
    rows = browser.evaluate(
        "[...document.querySelectorAll('#ranking li')]"
        ".map((row) => [row.firstChild.data, row.querySelector('b').textContent])"
    )
    return [(document, words) for document, words in rows]
