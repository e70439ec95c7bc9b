"""Remove a model from the cache folder: its file, and the weights that were made from it.

Nothing outside the cache folder is touched: a user's own file and the hub's cache stay.
"""

from dataclasses import dataclass
from pathlib import Path

from plimsoll import files
from plimsoll.encoder.catalog import ModelSpec
from plimsoll.errors import CacheError
from plimsoll.models.hub import local_file
from plimsoll.sidecar.cache import CacheEntry, evict, list_sidecars


@dataclass(frozen=True)
class Removal:
    """What would be removed. `file` is None where it is not ours; `kept` then names it."""

    file: Path | None
    file_bytes: int
    sidecars: tuple[CacheEntry, ...]
    kept: Path | None

    @property
    def n_bytes(self) -> int:
        """Room that it makes."""
        return self.file_bytes + sum(entry.n_bytes for entry in self.sidecars)


def plan_removal(spec: ModelSpec, cache_dir: Path) -> Removal:
    """Look what there is of a model. Raises CacheError while a process uses its weights."""
    path = local_file(spec, cache_dir)
    homes = {cache_dir / name for name in (files.MODELS_FOLDER, files.BUILT_FOLDER)}
    sources = {home / spec.file_name for home in homes} | ({path} if path else set())
    sidecars = tuple(entry for entry in list_sidecars(cache_dir) if entry.source_path in sources)
    if busy := [entry.key for entry in sidecars if entry.in_use]:
        raise CacheError(
            f"{spec.name} is in use by a running process ({', '.join(busy)}); stop it first"
        )
    is_ours = path is not None and path.parent in homes
    n_bytes = path.stat().st_size if path is not None and is_ours else 0
    return Removal(path if is_ours else None, n_bytes, sidecars, None if is_ours else path)


def remove(removal: Removal, cache_dir: Path) -> int:
    """Carry it out; returns the bytes freed. Raises CacheError where a process began to use it."""
    if removal.sidecars:
        keys = [entry.key for entry in removal.sidecars]
        if refused := evict(cache_dir, keys).in_use:
            raise CacheError(f"{refused[0].key} is in use by a process that began just now")
    if removal.file is not None:
        lock = removal.file.with_name(f".{removal.file.name}.lock")
        try:
            with files.disk_failures(removal.file.parent), files.locked(lock, wait=False):
                removal.file.unlink(missing_ok=True)
        except BlockingIOError as error:
            raise CacheError(f"{removal.file} is being fetched by another process") from error
    return removal.n_bytes
