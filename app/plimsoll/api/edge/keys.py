"""The keys of clients: `role:key`, the role embed or admin, listed in a setting or in a file.

A key may have limits of its own behind it: `embed:KEY tokens_per_s=5000 concurrency=4`.
Only SHA-256 digests are kept, and no message holds a key or a part of one. A file is read again
once it has changed; while it cannot be read or holds a mistake, the last good keys count.
"""

import logging
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from math import isfinite
from pathlib import Path
from time import monotonic
from typing import Any, TypeAlias

from plimsoll.api.edge.access import Access
from plimsoll.errors import SettingsError
from plimsoll.policy.client_limits import ClientLimits

log = logging.getLogger("plimsoll")

SETTING = "PLIMSOLL_API_KEYS"
ROLES = {"embed": Access.EMBED, "admin": Access.ADMIN}
LEAST_CHARACTERS, MOST_CHARACTERS = 16, 512
# A header can carry it and a list of keys can hold it: printable ASCII, no space, no comma.
KEY = re.compile(rf"[!-+\--~]{{{LEAST_CHARACTERS},{MOST_CHARACTERS}}}")
MOST_KEYS = 1000
# Those of ClientLimits, which may stand behind a key.
LIMITS: Mapping[str, type[int] | type[float]] = {
    "concurrency": int, "requests_per_s": float, "tokens_per_s": float,
}  # fmt: skip
MOST_FILE_BYTES = 1 << 20
PATH_BEGINS = ("/", "./", "../", "~/")
LOOK_S = 1.0  # between two looks at the file


@dataclass(frozen=True, slots=True)
class Key:
    """What a key stands for. digest: its name, which opens nothing. limits: its client's."""

    digest: bytes
    access: Access
    limits: ClientLimits


Digests: TypeAlias = Mapping[bytes, Key]
_Signature: TypeAlias = tuple[int, int, int, int]
"""Inode, size, and the times of the last change of content and of mode, in nanoseconds."""


class Keys:
    """Owns the digests of the keys that count now. Lives on the event loop.

    value: what PLIMSOLL_API_KEYS holds: entries with commas between them, or a file's path.
    limits: of a client whose key says nothing else. clock: seconds that never go back.
    Raises SettingsError for a value that holds no keys or a wrong one.
    """

    def __init__(
        self,
        value: str,
        limits: ClientLimits | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._limits = limits or ClientLimits()
        self._clock = clock
        self._path: Path | None = None
        self._next_look_s = clock() + LOOK_S
        self._seen: _Signature | None = None
        self._fault = ""  # of the last look, which is told once
        if value.startswith(PATH_BEGINS):
            self._path = Path(value).expanduser()
            self._seen = _signature(self._path)
            self._digests = _read(self._path, self._limits)
        else:
            entries = ((f"entry {n}", e) for n, e in enumerate(value.split(","), 1))
            self._digests = _digests(entries, self._limits)

    def find(self, key: bytes) -> Key | None:
        """What this key stands for; None: it is none of the keys.

        A look-up by digest takes as long for a wrong key as for a right one, but for what its hash
        has in common with a right one's: that tells nothing of the key.
        """
        if self._path is not None and self._clock() >= self._next_look_s:
            self._next_look_s = self._clock() + LOOK_S
            self._look(self._path)
        return self._digests.get(sha256(key).digest())

    def _look(self, path: Path) -> None:
        """Read the file again if it has changed since the last look."""
        signature = _signature(path)
        if signature == self._seen:
            return
        self._seen = signature
        try:
            self._digests = _read(path, self._limits)
        except SettingsError as error:
            if isinstance(error.__cause__, OSError):  # it may pass, and leave the file as it is
                self._seen = None
            if str(error) != self._fault:
                log.error("%s; the %d keys read before still count", error, len(self._digests))
            self._fault = str(error)
        else:
            self._fault = ""
            log.info("read %s again: %d keys", path, len(self._digests))


def _signature(path: Path) -> _Signature | None:
    """What tells a changed file from the same one; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read(path: Path, limits: ClientLimits) -> Digests:
    """Read a file of one key a line; blank lines and those that begin with # do not count."""
    try:
        if not path.is_file():
            raise SettingsError(f"{SETTING}: there is no file {path}")
        with path.open("rb") as file:
            is_readable_by_all = bool(os.fstat(file.fileno()).st_mode & stat.S_IROTH)
            content = file.read(MOST_FILE_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"{SETTING}: {path} cannot be read: {error.strerror}") from error
    if len(content) > MOST_FILE_BYTES:
        raise SettingsError(f"{SETTING}: {path} is larger than {MOST_FILE_BYTES >> 20} MiB")
    if is_readable_by_all:
        log.warning("every user of this machine can read the keys in %s: chmod o-r", path)
    lines = content.decode("utf-8-sig", errors="replace").splitlines()
    entries = (
        (f"{path} line {number}", line)
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    )
    return _digests(entries, limits)


def _digests(entries: Iterable[tuple[str, str]], limits: ClientLimits) -> Digests:
    """What each digest stands for. entries: (place, `role:key` and perhaps limits)."""
    found: dict[bytes, Key] = {}
    for place, entry in entries:
        written, *own_limits = entry.split() or [""]
        role, _, key = written.partition(":")
        if role not in ROLES or not KEY.fullmatch(key):
            raise SettingsError(
                f"{SETTING}: {place} is not of the form role:key, with the role embed or admin and "
                f"a key of {LEAST_CHARACTERS} to {MOST_CHARACTERS} printable ASCII characters "
                "without space and comma (a file's path begins with /, ./, ../ or ~/)"
            )
        digest = sha256(key.encode("ascii")).digest()
        if digest in found:
            raise SettingsError(f"{SETTING}: {place} has a key that stands before it already")
        found[digest] = Key(digest, ROLES[role], _with_own(limits, own_limits, place))
    if not found or len(found) > MOST_KEYS:
        raise SettingsError(f"{SETTING}: {len(found)} keys; allowed: 1 to {MOST_KEYS}")
    return found


def _with_own(limits: ClientLimits, written: Sequence[str], place: str) -> ClientLimits:
    """The limits of every client, but for what is written behind a key as `name=number`."""
    own: dict[str, Any] = {}  # each of the type that LIMITS says
    for each in written:
        name, _, number = each.partition("=")
        try:
            own[name] = LIMITS[name](number)
            is_good = isfinite(own[name]) and own[name] >= 0
        except (KeyError, ValueError):
            is_good = False
        if not is_good:  # and not shown: it may be a part of a key with a space in it
            raise SettingsError(
                f"{SETTING}: what stands behind the key of {place} is no limit, such as "
                f"{', '.join(f'{name}=4' for name in LIMITS)}, with 0 for none"
            )
    return replace(limits, **own)
