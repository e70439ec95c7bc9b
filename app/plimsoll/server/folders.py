"""Say so where another server uses the same folders.

A mark in each is locked while a server runs; the kernel unlocks that of one that was killed.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from plimsoll import files
from plimsoll.errors import CacheError

log = logging.getLogger("plimsoll")

MARK_NAME = "server.lock"
CACHE_WORDS = "what lies there is shared, and each of both counts its own memory alone"
DATA_WORDS = (
    "each would move collections behind the other's back and search vectors that are gone; end "
    "one of both, or set PLIMSOLL_DATA_DIR"
)


@contextmanager
def marked(cache: Path, data: Path, where: str) -> Iterator[None]:
    """Mark both folders, as far as they are there, for the length of a block.

    where: the address of this server, for the log of another one.
    """
    with ExitStack() as held:
        for folder, words in ((cache, CACHE_WORDS), (data, DATA_WORDS)):
            if folder.is_dir():
                _mark(folder / MARK_NAME, words, where, held)
        yield


def _mark(path: Path, words: str, where: str, held: ExitStack) -> None:
    try:
        held.enter_context(files.locked(path, wait=False))
        path.write_text(f"process {os.getpid()}, {where}", encoding="utf-8")
    except BlockingIOError:
        log.warning("another server (%s) uses %s too: %s", _other(path), path.parent, words)
    except (OSError, CacheError) as error:  # no reason not to serve
        log.info("cannot mark %s as in use: %s", path.parent, error)


def _other(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace") or "which has just started"
    except OSError:
        return "which has just ended"
