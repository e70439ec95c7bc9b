"""Folders, locks and durable writes; what the hub and the loader share."""

import errno
import fcntl
import os
import re
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from plimsoll import files
from plimsoll.errors import CacheError, CacheSpaceError, CacheUnsafeError, ModelDownloadError
from tests.gguf_weights import ends

TIMEOUT_S = 60
MEMORY = Path("/dev/shm")


class TestMemoryBacked:
    def mounts(self, tmp_path, kind, device):
        """A table of mounts in which this device has another kind of file system."""
        table = tmp_path / "mountinfo"
        table.write_text(
            "22 1 0:21 / /proc rw,nosuid shared:5 - proc proc rw\n"
            f"36 22 {os.major(device)}:{os.minor(device)} / /data rw - {kind} /dev/sda1 rw\n"
        )
        return table

    @pytest.mark.parametrize("kind", ["tmpfs", "ramfs"])
    def test_a_file_system_in_memory_is_known_by_its_device(self, tmp_path, kind):
        """Where it is mounted does not matter: bind mounts carry it anywhere."""
        table = self.mounts(tmp_path, kind, tmp_path.stat().st_dev)
        assert files.memory_file_system(tmp_path, table) == kind

    def test_a_disk_is_not_memory(self, tmp_path):
        table = self.mounts(tmp_path, "ext4", tmp_path.stat().st_dev)
        assert files.memory_file_system(tmp_path, table) is None

    def test_memory_mounted_elsewhere_does_not_matter(self, tmp_path):
        """Every system has some tmpfs."""
        table = self.mounts(tmp_path, "tmpfs", tmp_path.stat().st_dev + 1)
        assert files.memory_file_system(tmp_path, table) is None

    def test_where_the_system_does_not_tell_nothing_is_assumed(self, tmp_path):
        """macOS has no /proc; the cache must work there."""
        assert files.memory_file_system(tmp_path, tmp_path / "none") is None

    @pytest.mark.skipif(not MEMORY.is_dir(), reason="no /dev/shm here")
    def test_the_real_one_is_refused_unless_asked_for(self):
        """The message names both ways out, and why."""
        path = MEMORY / f"plimsoll-test-{os.getpid()}"
        if files.memory_file_system(MEMORY) is None:
            pytest.skip("/dev/shm is on a disk here")
        try:
            with pytest.raises(CacheUnsafeError) as caught:
                files.private_folder(path)
            for word in ("memory limit", "PLIMSOLL_CACHE_DIR", "PLIMSOLL_CACHE_ON_TMPFS"):
                assert word in str(caught.value)
            assert files.private_folder(path, allow_memory_backed=True) == path
        finally:
            path.rmdir()


class TestWritable:
    def test_nothing_is_left_of_the_look(self, tmp_path):
        """It happens at every start."""
        files.check_writable(tmp_path)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("number", "told"),
        [
            (errno.EROFS, "Read-only file system"),
            (errno.EACCES, f"user {os.geteuid()} may write"),
            (errno.EIO, "PLIMSOLL_CACHE_DIR"),
            (errno.ENOSPC, "plimsoll cache evict"),
        ],
    )
    def test_a_folder_that_takes_no_file_is_told_with_what_to_do(
        self, tmp_path, monkeypatch, number, told
    ):
        """The system's own words leave an operator to guess which setting it is about."""

        def refuse(dir):
            raise OSError(number, os.strerror(number), f"{dir}/x")

        monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)
        with pytest.raises(CacheError, match=told) as refused:
            files.check_writable(tmp_path)
        assert str(tmp_path) in str(refused.value)
        assert "Errno" not in str(refused.value)


class TestLock:
    def test_it_leaves_no_file(self, tmp_path):
        """A cache with a lock for everything that ever was in it would never be tidy."""
        with files.locked(tmp_path / "a.lock"):
            assert (tmp_path / "a.lock").exists()
        assert list(tmp_path.iterdir()) == []

    def test_one_at_a_time_gets_in(self, tmp_path):
        """The file is removed and made again all the time; no two may be in at once."""
        inside, most, entered = [], [], []

        def enter():
            for _ in range(50):
                with files.locked(tmp_path / "a.lock"):
                    inside.append(1)
                    most.append(len(inside))
                    entered.append(1)
                    inside.pop()

        threads = [threading.Thread(target=enter) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)
        assert (max(most), len(entered)) == (1, 400)
        assert list(tmp_path.iterdir()) == []

    def test_a_lock_on_a_file_that_was_removed_is_no_lock(self, tmp_path, monkeypatch):
        """Between open and lock the holder may have gone, and another may have made a new file."""
        path, take, holders = tmp_path / "a.lock", fcntl.flock, []

        def late(fd, operation):
            if not holders:
                path.unlink()
                holders.append(path.open("x"))
                take(holders[0], fcntl.LOCK_EX)
            take(fd, operation)

        monkeypatch.setattr(files.fcntl, "flock", late)
        with pytest.raises(BlockingIOError), files.locked(path, wait=False):
            pass
        holders[0].close()

    def test_who_does_not_want_to_wait_is_told(self, tmp_path):
        """Evicting must not hang on a load that takes minutes."""
        with (
            files.locked(tmp_path / "a.lock"),
            pytest.raises(BlockingIOError),
            files.locked(tmp_path / "a.lock", wait=False),
        ):
            pass
        with files.locked(tmp_path / "a.lock", wait=False):
            pass

    def test_a_dead_process_holds_nothing(self, tmp_path):
        """A killed load must not lock out all those after it."""
        code = (
            "import os, signal, sys; from pathlib import Path\n"
            "from plimsoll import files\n"
            "with files.locked(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        root = Path(__file__).parents[1]
        command = [sys.executable, "-c", code, str(tmp_path / "a.lock")]
        assert subprocess.run(command, cwd=root, timeout=60).returncode == -signal.SIGKILL
        assert (tmp_path / "a.lock").exists()

        def enter():
            with files.locked(tmp_path / "a.lock"):
                pass

        ends(enter)
        assert list(tmp_path.iterdir()) == []

    def test_a_symbolic_link_is_not_followed(self, tmp_path):
        """It would have us make, and remove, a file elsewhere."""
        (tmp_path / "a.lock").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(OSError, match="symbolic"), files.locked(tmp_path / "a.lock"):
            pass
        assert not (tmp_path / "elsewhere").exists()

    def test_a_file_system_without_locks_is_told(self, tmp_path, monkeypatch):
        """Some network file systems have none; two processes would write the same file."""

        def refuse(fd, operation):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(files.fcntl, "flock", refuse)
        with pytest.raises(CacheError, match="local disk"), files.locked(tmp_path / "a.lock"):
            pass


class TestWrite:
    def test_a_file_is_ours_alone_and_new(self, tmp_path):
        """An existing one may be a link that another user laid out."""
        files.write_durably(tmp_path / "a", b"data")
        assert (tmp_path / "a").read_bytes() == b"data"
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
        with pytest.raises(FileExistsError):
            files.write_durably(tmp_path / "a", b"other")

    def test_publishing_syncs_content_then_name(self, tmp_path, monkeypatch):
        """After a power cut a name must never stand for less than was written under it."""
        steps = []
        monkeypatch.setattr(files, "sync", lambda path: steps.append((path.name, path.exists())))
        (tmp_path / "a.tmp").write_bytes(b"data")
        files.publish(tmp_path / "a.tmp", tmp_path / "a")
        assert steps == [("a.tmp", True), (tmp_path.name, True)]
        assert [path.name for path in tmp_path.iterdir()] == ["a"]

    @pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
    def test_files_and_folders_are_published_alike(self, tmp_path, make):
        make(tmp_path / "a.tmp")
        files.publish(tmp_path / "a.tmp", tmp_path / "a")
        assert [path.name for path in tmp_path.iterdir()] == ["a"]

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
    def test_a_full_disk_has_an_error_of_its_own(self, tmp_path, code):
        """It is the one that the operator can mend at once."""
        with pytest.raises(CacheSpaceError, match="cache evict"), files.disk_failures(tmp_path):
            raise OSError(code, "full")

    def test_any_other_refusal_names_the_folder(self, tmp_path):
        with pytest.raises(CacheError, match=str(tmp_path)), files.disk_failures(tmp_path):
            raise OSError(errno.EROFS, "Read-only file system")

    def test_another_content_is_refused_with_the_way_out(self, tmp_path):
        (tmp_path / "a").write_bytes(b"data")
        with pytest.raises(ModelDownloadError, match=r"the file is damaged.*or pray"):
            files.check_sha256(tmp_path / "a", "0" * 64, "the file", remedy="pray")


@pytest.mark.parametrize(
    ("mode", "user", "fault"),
    [
        (0o640, None, None),
        (0o600, 0, None),
        (0o620, None, "the group .* may write it: chmod g-w"),
        (0o602, None, "everyone may write it: chmod go-w"),
        (0o600, 65534, "it belongs to user 65534"),
    ],
)
def test_a_file_is_ours_alone_where_no_other_user_but_root_may_write_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, user: int | None, fault: str | None
):
    path = tmp_path / "hooks.toml"
    path.touch()
    path.chmod(mode)
    if user is not None:
        found = [*path.stat()]
        found[stat.ST_UID] = user
        monkeypatch.setattr(Path, "stat", lambda self: os.stat_result(found))
    told = files.who_else_may_write(path)
    assert (told is None) is (fault is None)
    assert fault is None or re.match(fault, told or "")
