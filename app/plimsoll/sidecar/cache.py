"""Look after the cache folder: what is in it, whether it is whole, and removing it.

Makes nothing: sidecars come from loader.py, model files from the hub or the user. Nothing
here creates a folder or a file that stays.
"""

import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

from plimsoll import files
from plimsoll.errors import CacheCorruptError, CacheError
from plimsoll.sidecar.index import SidecarIndex, SourceRecord, parse_index
from plimsoll.sidecar.indexed_file import IndexedFile
from plimsoll.sidecar.packed import open_file, packed_folders
from plimsoll.sidecar.sidecar import INDEX_NAME, Sidecar


class SourceState(StrEnum):
    """What has become of the file that a sidecar was made from."""

    UNCHANGED = "unchanged"
    CHANGED = "changed"
    MISSING = "missing"
    UNKNOWN = "unknown"  # the sidecar does not say


@dataclass(frozen=True)
class CacheEntry:
    """A sidecar, or what a load that was killed left of one."""

    key: str
    folder: Path
    n_bytes: int
    packed_bytes: int  # of these, what packed weights take
    created: datetime
    in_use: bool  # by a live process, which may be making it just now
    source_path: Path | None
    source_state: SourceState
    compute: str | None
    fault: str | None  # why it cannot be opened
    is_stale: bool  # no load would use it any more; one of a newer format is not stale


@dataclass(frozen=True)
class ModelFile:
    """A file in `models` or `built`."""

    path: Path
    n_bytes: int
    built: bool  # written by Plimsoll, which makes it again when it is removed


@dataclass(frozen=True)
class Damage:
    """What is not as it was written: a tensor, or a file beside the weights or a part of it."""

    place: str
    fault: str  # which bytes of the file, or why it cannot be opened


@dataclass(frozen=True)
class Eviction:
    """What `evict` did."""

    removed: tuple[CacheEntry, ...]
    in_use: tuple[CacheEntry, ...]  # refused

    @property
    def removed_bytes(self) -> int:
        """Room made, at most: clones share theirs with their sources."""
        return sum(entry.n_bytes for entry in self.removed)


def list_sidecars(cache_dir: Path) -> list[CacheEntry]:
    """Every sidecar in the cache, the newest first; empty where there is no cache.

    Raises CacheUnsafeError for a folder that is not ours alone.
    """
    root = cache_dir / files.SIDECARS_FOLDER
    if not os.path.lexists(root):
        return []
    files.private_folder(root, allow_memory_backed=True)
    with files.disk_failures(root):
        found = [_entry(folder) for folder in _contents(root) if folder.is_dir()]
    return sorted(filter(None, found), key=lambda entry: entry.created, reverse=True)


def list_models(cache_dir: Path) -> list[ModelFile]:
    """Every model file in the cache, downloaded, put by hand or built."""
    return [
        ModelFile(path, path.stat().st_size, built=name == files.BUILT_FOLDER)
        for name in (files.MODELS_FOLDER, files.BUILT_FOLDER)
        for path in _contents(cache_dir / name)
        if path.is_file() and not path.name.startswith(".")
    ]


def verify(
    entry: CacheEntry, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Damage]:
    """Compare every byte of a sidecar's weights with its checksums; empty when all are right.

    Packed weights too. progress: told bytes done and in all. What is damaged is put aside, so that
    the next load builds it again.
    Raises CacheCorruptError when index or header are damaged, CacheError when it is of a newer
    format.
    """
    with closing(Sidecar(entry.folder)) as sidecar:
        places = sidecar.index.tensors.values()
        total_bytes = sum(place.n_bytes for place in places)
        done_bytes = 0
        damages: list[Damage] = []
        for place in places:
            found = sidecar.damaged_chunks(place.name)
            damages += [Damage(place.name, _bytes_words(*bounds)) for bounds in found]
            done_bytes += place.n_bytes
            progress(done_bytes, total_bytes)
        if damages:
            sidecar.put_aside()
    for folder in packed_folders(entry.folder):
        damages += verify_file(folder.name, partial(open_file, folder))
    return damages


def verify_file(name: str, opening: Callable[[], IndexedFile[Any]]) -> list[Damage]:
    """Compare every byte of a file with its index; what is damaged is put aside."""
    try:
        with closing(opening()) as file:
            found = list(file.damages())
            if found:
                file.put_aside()
    except CacheError as error:
        return [Damage(name, str(error))]
    return [Damage(f"{name} {place}", _bytes_words(start, stop)) for place, start, stop in found]


def evict(
    cache_dir: Path, keys: Collection[str] | None = None, *, stale_only: bool = False
) -> Eviction:
    """Remove sidecars: those with these keys, or all; with `stale_only`, the stale ones of them.

    What a live process has open, or is making, is refused and told.
    Raises CacheError, before anything is removed, for a key that is not there.
    """
    entries = list_sidecars(cache_dir)
    unknown = sorted(set(keys or ()) - {entry.key for entry in entries})
    if unknown:
        known = ", ".join(entry.key for entry in entries) or "none"
        raise CacheError(f"no sidecar is called {', '.join(unknown)}; there are: {known}")
    removed: list[CacheEntry] = []
    in_use: list[CacheEntry] = []
    for entry in entries:
        if (keys is None or entry.key in keys) and (entry.is_stale or not stale_only):
            (removed if _remove(entry) else in_use).append(entry)
    return Eviction(tuple(removed), tuple(in_use))


def _bytes_words(start: int, stop: int) -> str:
    return f"bytes {start} to {stop}"


def _files_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _entry(folder: Path) -> CacheEntry | None:
    """Describe a sidecar; None when it was removed during the look."""
    in_use = _is_in_use(folder)
    index, fault, is_broken = _read(folder, in_use)
    state = _source_state(index.source) if index else SourceState.UNKNOWN
    try:
        return CacheEntry(
            key=folder.name,
            folder=folder,
            n_bytes=_files_bytes(folder),
            packed_bytes=sum(map(_files_bytes, packed_folders(folder))),
            created=datetime.fromtimestamp(_mark(folder).stat().st_mtime, UTC),
            in_use=in_use,
            source_path=Path(index.source.path) if index else None,
            source_state=state,
            compute=index.compute if index else None,
            fault=fault,
            is_stale=is_broken or state in (SourceState.CHANGED, SourceState.MISSING),
        )
    except FileNotFoundError:
        return None


def _read(folder: Path, in_use: bool) -> tuple[SidecarIndex | None, str | None, bool]:
    """The index, or why there is none, and whether there never will be."""
    if folder.suffix == files.TEMPORARY_SUFFIX:
        fault = "it is being made" if in_use else "a load was stopped before its end"
        return None, fault, not in_use
    try:
        return parse_index((folder / INDEX_NAME).read_bytes(), folder.name), None, False
    except CacheError as error:
        return None, str(error), isinstance(error, CacheCorruptError)
    except OSError as error:
        fault = f"the index cannot be read: {error.strerror}"
        return None, fault, isinstance(error, FileNotFoundError)


def _mark(folder: Path) -> Path:
    """What tells the time that a sidecar was made: its index was written last."""
    index = folder / INDEX_NAME
    return index if index.exists() else folder


def _source_state(source: SourceRecord) -> SourceState:
    try:
        found = Path(source.path).stat()
    except OSError:
        return SourceState.MISSING
    same = (found.st_size, found.st_mtime_ns, found.st_ino) == (
        source.size,
        source.mtime_ns,
        source.inode,
    )
    return SourceState.UNCHANGED if same else SourceState.CHANGED


def _is_in_use(folder: Path) -> bool:
    if files.in_use(folder / INDEX_NAME):
        return True
    return folder.suffix == files.TEMPORARY_SUFFIX and files.in_use(files.lock_of(folder))


def _remove(entry: CacheEntry) -> bool:
    """Remove a sidecar unless it is in use."""
    root = entry.folder.parent
    lock = files.lock_of(entry.folder)
    try:
        with files.disk_failures(root), files.locked(lock, wait=False):
            if files.in_use(entry.folder / INDEX_NAME):
                return False
            # First, so that what a kill leaves half removed is not taken for whole.
            (entry.folder / INDEX_NAME).unlink(missing_ok=True)
            shutil.rmtree(entry.folder)
            files.sync(root)
    except BlockingIOError:
        return False
    return True


def _contents(folder: Path) -> Iterator[Path]:
    try:
        yield from sorted(folder.iterdir())
    except FileNotFoundError:
        return
