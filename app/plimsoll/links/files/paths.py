"""Which files a name means: one, those of a pattern, or the parts in a folder; and their kinds.

Every file has a stamp that tells whether it and those before it are still as they were when a place
in them was noted.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Literal, TypeAlias

from plimsoll.errors import OutsideMismatchError, OutsideUnavailableError
from plimsoll.links.files.manifest import whole_parts

Kind: TypeAlias = Literal["json", "parquet"]

GZIP = ".gz"
CHANGE_RETRY_S = 5.0
_ENDINGS: dict[str, Kind] = {
    ".jsonl": "json", ".ndjson": "json", ".json": "json", ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip


@dataclass(frozen=True)
class SourceFile:
    """A file with rows. n_bytes and changed_ns: as it was when it was found; stamp: see Place."""

    path: Path
    kind: Kind
    n_bytes: int
    changed_ns: int
    stamp: str

    @property
    def is_compressed(self) -> bool:
        """Whether it is of JSON lines in gzip."""
        return self.path.suffix == GZIP

    def check_unchanged(self, found: os.stat_result) -> None:
        """Raise OutsideUnavailableError unless it is as it was when it was found."""
        if (found.st_size, found.st_mtime_ns) != (self.n_bytes, self.changed_ns):
            raise OutsideUnavailableError(
                f"{self.path} has changed while it was read; what was read of it is kept: begin "
                "again once nothing writes to it",
                retry_after_s=CHANGE_RETRY_S,
            )


def kind_of(path: Path) -> Kind | None:
    """What a file holds, by the ending of its name; None where that says nothing."""
    name = path.with_suffix("") if path.suffix == GZIP else path
    kind = _ENDINGS.get(name.suffix.lower())
    return None if kind == "parquet" and path.suffix == GZIP else kind


def files_of(*names: str) -> list[SourceFile]:
    """The files that are meant, in the order of their names, each once.

    Raises OutsideMismatchError where there is none, or one of another kind. In a folder files whose
    names begin with "." or "_", or end in no kind's way, are none of its parts.
    """
    try:
        return _stamped(sorted({path for name in names for path in _found(name)}))
    except OSError as error:
        raise OutsideMismatchError(f"cannot read {error.filename}: {error.strerror}") from error


def _found(name: str) -> Sequence[Path]:
    path = Path(name).expanduser()
    if path.is_dir():
        parts = whole_parts(path)
        if parts is None:
            parts = [each for each in path.iterdir() if _is_part(each)]
        if not parts:
            raise OutsideMismatchError(f"{path} holds no files that end in {_known_endings()}")
        return parts
    if path.exists() or not has_magic(name):
        return [path]
    matching = [Path(each) for each in glob(str(path), recursive=True)]  # noqa: PTH207 - has "/"
    if not matching:
        raise OutsideMismatchError(f"no file is called like {name}")
    return [each for each in matching if each.is_file()]


def _is_part(path: Path) -> bool:
    return path.is_file() and path.name[0] not in "._" and kind_of(path) is not None


def _stamped(paths: Sequence[Path]) -> list[SourceFile]:
    files, running = list[SourceFile](), hashlib.blake2b(digest_size=12)
    for path in paths:
        kind = kind_of(path)
        if kind is None:
            raise OutsideMismatchError(f"{path} is of no kind that is read: {_known_endings()}")
        found = path.stat()
        running.update(f"{path}\n{found.st_size}\n{found.st_mtime_ns}\n".encode())
        stamp = running.hexdigest()
        files.append(SourceFile(path, kind, found.st_size, found.st_mtime_ns, stamp))
    if len({file.kind for file in files}) > 1:
        raise OutsideMismatchError(
            f"{files[0].path} and {files[-1].path} are of two kinds, JSON lines and Parquet; name "
            "files of one"
        )
    return files


def _known_endings() -> str:
    return f"{', '.join(_ENDINGS)}, and {GZIP} behind those of JSON"
