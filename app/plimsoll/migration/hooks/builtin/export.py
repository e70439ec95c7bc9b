"""Writes all that is known of a migration into one file, for what comes after it."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import orjson

from plimsoll import __version__, files
from plimsoll.errors import HookError
from plimsoll.migration.hooks.occasion import Occasion
from plimsoll.migration.hooks.records import Answer
from plimsoll.migration.hooks.written import Options


class SessionExport(Options):
    """folder: where the file goes."""

    folder: Path | None = None


class Export:
    """Writes migration-NUMBER-TIME.json: status, audit, hooks, verdict and memory.

    folder: where to, unless the options say otherwise. now: the time, as the journal writes it.
    """

    def __init__(self, folder: Path, now: Callable[[], str], options: SessionExport) -> None:
        self._folder = options.folder or folder
        self._now = now

    async def __call__(self, occasion: Occasion) -> Answer:
        """Write the file. Raises HookError."""
        if occasion.status is None:  # which Hook.needs_migration keeps from happening
            raise HookError("it looks at a migration")
        now = self._now()
        stamp = re.sub(r"\D", "", now)
        path = self._folder / f"migration-{occasion.status.counts.migration.id}-{stamp}.json"
        content = {"plimsoll": __version__, "exported_at": now, **occasion.as_json()}
        data = orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n"
        try:
            await asyncio.to_thread(_write, path, data)
        except OSError as error:
            raise HookError(f"{path} cannot be written: {error.strerror}") from error
        return Answer(reason=str(path), figures={"path": str(path), "bytes": len(data)})


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    being_written = files.temporary_of(path)
    files.write_durably(being_written, data)
    files.publish(being_written, path)
