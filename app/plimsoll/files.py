"""Plimsoll's own files: folders that only it can enter, locks, writes that survive a crash.

Knows paths and bytes, nothing of models or formats. Every file appears under its name in one
rename, after its content was made durable. A process that is killed before leaves a temporary
name, which the next holder of the same lock removes.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

from plimsoll.errors import CacheError, CacheSpaceError, CacheUnsafeError, ModelDownloadError

MODELS_FOLDER = "models"  # downloaded, or put there by hand
BUILT_FOLDER = "built"  # written by Plimsoll alone, so that it may be mapped where it lies
SIDECARS_FOLDER = "sidecars"

TEMPORARY_SUFFIX = ".tmp"
LOCK_SUFFIX = ".lock"
FREE_SPACE_MARGIN_BYTES = 64 << 20
MOUNTS = Path("/proc/self/mountinfo")
_MEMORY_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs"})
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def private_folder(path: Path, *, allow_memory_backed: bool = False) -> Path:
    """Create a folder that only we can enter, or check one that is there.

    Raises CacheUnsafeError for a symbolic link, for a folder of another user (root's is
    accepted), for one that every user may write to, and for one in memory unless allowed.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        is_file = isinstance(error, FileExistsError)
        reason = "there is a file of that name" if is_file else error.strerror
        raise CacheUnsafeError(
            f"cannot make the cache folder {path}: {reason}; {_remedy()}"
        ) from error
    if stat.S_ISLNK(found.st_mode):
        fault = "is a symbolic link, which another user could turn elsewhere"
    elif found.st_uid not in (os.geteuid(), 0):
        fault = f"belongs to user {found.st_uid}, and we are user {os.geteuid()}"
    elif found.st_mode & stat.S_IWOTH:
        fault = "may be written to by everybody"
    elif not allow_memory_backed and (kind := memory_file_system(path)):
        raise CacheUnsafeError(
            f"the cache folder {path} is on {kind}: its files are memory and count against the "
            "memory limit; set PLIMSOLL_CACHE_DIR to a folder on a disk, or "
            "PLIMSOLL_CACHE_ON_TMPFS=true to allow it"
        )
    else:
        return path
    raise CacheUnsafeError(f"the cache folder {path} {fault}; set PLIMSOLL_CACHE_DIR to another")


def who_else_may_write(path: Path) -> str | None:
    """Who but we and root may write a file, and what mends that; None where no other user may.

    As sshd's StrictModes asks of its own. Raises OSError.
    """
    found = path.stat()
    if found.st_uid not in (os.geteuid(), 0):
        return (
            f"it belongs to user {found.st_uid}, and we are user {os.geteuid()}: chown it to that "
            "user or to root"
        )
    if found.st_mode & stat.S_IWOTH:
        return "everyone may write it: chmod go-w it"
    if found.st_mode & stat.S_IWGRP:
        return f"the group {found.st_gid} may write it: chmod g-w it"
    return None


def memory_file_system(path: Path, mounts: Path = MOUNTS) -> str | None:
    """Name of the file system that holds `path` where that one is memory, else None."""
    kind = file_system(path, mounts)
    return kind if kind in _MEMORY_FILE_SYSTEMS else None


def file_system(path: Path, mounts: Path = MOUNTS) -> str | None:
    """Name of the file system that holds `path`, such as ext4.

    None where the system does not tell (no /proc). Format: proc(5), mountinfo.
    """
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        mount, _, kind = line.partition(" - ")
        if mount.split()[2:3] == [wanted]:
            return kind.split()[0]
    return None


def temporary_of(path: Path) -> Path:
    """Where a file or folder is written before it appears at `path`."""
    return path.with_name(f"{path.name}{TEMPORARY_SUFFIX}")


def own_temporary_of(path: Path) -> Path:
    """Likewise, under a name that no other process takes, where no lock keeps them apart."""
    return path.with_name(f"{path.name}.{token_hex(4)}{TEMPORARY_SUFFIX}")


def lock_of(path: Path) -> Path:
    """The lock of a file or folder and of its temporary name."""
    return path.with_name(f"{path.name.removesuffix(TEMPORARY_SUFFIX)}{LOCK_SUFFIX}")


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock between threads and processes; the kernel frees a dead one's.

    The lock file is there only while the lock is held or waited for.
    Raises BlockingIOError when it is held and we are not to wait.
    """
    fd = _take_lock(path, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    try:
        yield
    finally:
        # One who waits for the lock finds that its file is gone, and makes another one.
        path.unlink(missing_ok=True)
        os.close(fd)


def _take_lock(path: Path, operation: int) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            _flock(fd, operation, path)
            if is_at(fd, path):
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def share(fd: int, path: Path) -> bool:
    """Mark an open file as in use until it is closed; False when it is no longer at `path`."""
    _flock(fd, fcntl.LOCK_SH, path)
    return is_at(fd, path)


def in_use(path: Path) -> bool:
    """Whether any process, ourselves included, marks this file as in use; False when it is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        _flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, path)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _flock(fd: int, operation: int, path: Path) -> None:
    try:
        fcntl.flock(fd, operation)
    except BlockingIOError:
        raise
    except OSError as error:
        raise CacheError(
            f"cannot lock {path}: {error.strerror}; set PLIMSOLL_CACHE_DIR to a folder on a local "
            "disk"
        ) from error


def is_at(fd: int, path: Path) -> bool:
    """Whether an open file is still the one at `path`, neither removed nor replaced."""
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False


def check_space(folder: Path, n_bytes: int) -> None:
    """Raise CacheSpaceError unless `n_bytes` and a margin are free."""
    free = shutil.disk_usage(folder).free
    if free < n_bytes + FREE_SPACE_MARGIN_BYTES:
        raise CacheSpaceError(
            f"{n_bytes >> 20} MiB are needed in {folder}, where {free >> 20} MiB are free; "
            "make room with `plimsoll cache evict` or set PLIMSOLL_CACHE_DIR"
        )


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error says that the disk, or the user's share of it, is full."""
    return isinstance(error, OSError) and error.errno in _DISK_FULL


@contextmanager
def disk_failures(folder: Path) -> Iterator[None]:
    """Turn what the disk refuses into a CacheError that says what can be done about it."""
    try:
        yield
    except BlockingIOError:  # a lock's, not the disk's
        raise
    except OSError as error:
        if is_disk_full(error):
            raise CacheSpaceError(
                f"the disk filled up while {folder} was written to; make room with "
                "`plimsoll cache evict` or set PLIMSOLL_CACHE_DIR"
            ) from error
        raise CacheError(
            f"the cache folder {folder} cannot be used: {error.strerror or error}; {_remedy()}"
        ) from error


def check_writable(folder: Path) -> None:
    """Raise a CacheError unless a file can be made in `folder`; nothing is left there."""
    with disk_failures(folder), tempfile.TemporaryFile(dir=folder):
        pass


def _remedy() -> str:
    return f"set PLIMSOLL_CACHE_DIR to a folder on a disk that user {os.geteuid()} may write to"


def check_sha256(path: Path, expected: str, what: str, *, remedy: str) -> None:
    """Raise ModelDownloadError unless the file's content has this SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise ModelDownloadError(
            f"{what} is damaged or not what was published: SHA-256 {found}, expected {expected} "
            f"({path.stat().st_size} bytes); try again, or {remedy}"
        )


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file and wait until the disk has it; its folder's entry is not waited for."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:  # noqa: PTH123 - a descriptor has no path
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def publish(written: Path, target: Path) -> None:
    """Make a finished file, or a folder of durable files, appear under its name in one step."""
    sync(written)
    written.rename(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Wait until the disk has a file's content, or a folder's entries."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
