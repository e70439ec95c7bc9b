"""From a GGUF file to mapped weights, on a real disk, with real processes and real signals."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from plimsoll import files
from plimsoll.errors import (
    CacheCorruptError,
    CacheError,
    CacheSpaceError,
    CacheUnsafeError,
    GGUFTruncatedError,
    GGUFTypeError,
    ModelLoadError,
    ModelNotFoundError,
    ModelUnsupportedError,
)
from plimsoll.gguf.sources import FileSource
from plimsoll.sidecar import loader as loader_module
from plimsoll.sidecar import pipeline
from plimsoll.sidecar.index import CHUNK_BYTES, WeightsPlace
from plimsoll.sidecar.loader import MAX_ATTEMPTS, StreamingGGUFLoader
from plimsoll.sidecar.pipeline import PIECE_BYTES
from plimsoll.sidecar.sidecar import HEADER_NAME, INDEX_NAME, WEIGHTS_NAME, Sidecar
from tests.gguf_weights import expanded, random_tensors, write_gguf

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60
ARRAYS = "{n: s.array(n).tobytes() for n in s.index.tensors}"


@pytest.fixture
def float32_source(tmp_path):
    return write_gguf(tmp_path / "float32.gguf", random_tensors())


class Loads:
    """Loads, and closes at the end what was loaded."""

    def __init__(self, cache):
        self.cache = cache
        self.opened = []

    def __call__(self, path, **options):
        self.told = []
        options.setdefault("progress", lambda *step: self.told.append(step))
        sidecar = StreamingGGUFLoader(self.cache, wait=lambda _: None, **options).load(path)
        self.opened.append(sidecar)
        return sidecar


@pytest.fixture
def load(cache):
    loads = Loads(cache)
    yield loads
    for sidecar in loads.opened:
        sidecar.close()


def files_in(cache):
    """Everything below the cache's sidecars, locks and leftovers included."""
    root = cache / "sidecars"
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def whole(folder):
    """The files of one good sidecar."""
    return [f"{folder.name}/{name}" for name in (HEADER_NAME, INDEX_NAME, WEIGHTS_NAME)]


def assert_values(sidecar, expected):
    assert set(sidecar.index.tensors) == set(expected)
    for name, values in expected.items():
        sidecar.verify(name)
        np.testing.assert_array_equal(sidecar.array(name), values, err_msg=name)


def run(code, *arguments, **options):
    """Run Python in a process of its own, which a signal may kill."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        **options,
    )


def failing(monkeypatch, error, n_times=1_000_000):
    """Make the file's reads fail in the pipeline, though not for its header."""
    left = [n_times]
    read = FileSource.readinto_at

    def fail(self, offset, buffer):
        if offset and left[0]:
            left[0] -= 1
            raise error
        return read(self, offset, buffer)

    monkeypatch.setattr(FileSource, "readinto_at", fail)


class TestProduct:
    @pytest.mark.parametrize("quant", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_1"])
    def test_weights_are_what_gguf_py_makes_of_the_file(self, load, tmp_path, quant):
        """Everything else rests on these numbers."""
        path = write_gguf(tmp_path / "model.gguf", random_tensors(), quant)
        assert_values(load(path), expanded(path))

    def test_the_second_load_reuses_the_first(self, load, source):
        """A restart maps what is there: it takes milliseconds."""
        first = load(source)
        second = load(source)
        assert load.told == []
        assert second.folder == first.folder
        assert_values(second, expanded(source))

    def test_only_the_sidecar_stays(self, load, cache, source):
        """No lock, no temporary folder: what lies there is what is used."""
        sidecar = load(source)
        assert files_in(cache) == whole(sidecar.folder)

    def test_progress_rises_to_the_whole(self, load, source):
        """The user who waits must see it move, and it must end where it said it would."""
        load(source)
        total = sum(4 * values.size for values in random_tensors().values())
        assert load.told == sorted(load.told)
        assert load.told[-1] == (total, total, "write")

    def test_the_index_is_written_last(self, load, source, monkeypatch):
        """With an index a folder is taken for whole: nothing may be missing then."""
        written = []
        write, publish = files.write_durably, files.publish

        def note(path, data):
            written.append((path.name, (path.parent / WEIGHTS_NAME).exists()))
            write(path, data)

        monkeypatch.setattr(files, "write_durably", note)
        monkeypatch.setattr(
            files, "publish", lambda *paths: (written.append("rename"), publish(*paths))
        )
        load(source)
        assert written == [(HEADER_NAME, True), (INDEX_NAME, True), "rename"]

    def test_the_content_is_named_alike_however_it_is_kept(self, load, tmp_path):
        """The vector space's name must not depend on a setting, a path or the tensors' order."""
        tensors = random_tensors()
        path = write_gguf(tmp_path / "a.gguf", tensors)
        turned = write_gguf(tmp_path / "b.gguf", dict(reversed(tensors.items())))
        contents = {
            load(path).index.content_sha256,
            load(path, in_place=True).index.content_sha256,
            load(turned).index.content_sha256,
        }
        assert len(contents) == 1
        other = write_gguf(tmp_path / "c.gguf", random_tensors(seed=1))
        assert load(other).index.content_sha256 not in contents

    def test_nothing_is_written_outside_the_cache(self, cache, source):
        """The root file system may be read-only but for the cache."""
        code = (
            "import os, sys; from pathlib import Path\n"
            "from plimsoll.sidecar.loader import StreamingGGUFLoader\n"
            "cache, inside, outside = sys.argv[2], [], []\n"
            "def hook(event, arguments):\n"
            "    path = str(arguments[0]) if arguments else ''\n"
            "    writes = event in 'os.mkdir os.rename os.remove os.rmdir os.truncate'.split()\n"
            "    writes |= event == 'open' and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))\n"
            "    if writes and not path.isdigit():\n"
            "        (inside if path.startswith(cache) else outside).append((event, path))\n"
            "sys.addaudithook(hook)\n"
            "StreamingGGUFLoader(Path(cache)).load(Path(sys.argv[1])).close()\n"
            "print(len(inside) > 3, outside)\n"
        )
        done = run(code, source, cache)
        assert (done.stdout, done.stderr) == ("True []\n", "")


class TestRetry:
    def test_a_read_that_fails_twice_is_made_good(self, load, source, monkeypatch):
        """Network file systems and old disks stumble; the load goes on in smaller pieces."""
        failing(monkeypatch, OSError(errno.EIO, "stumbled"), 2)
        sizes, waits = [], []
        line = pipeline.Pipeline.run
        monkeypatch.setattr(
            pipeline.Pipeline,
            "run",
            lambda self, jobs, size: (sizes.append(size), line(self, jobs, size))[1],
        )
        told = []
        options = {"wait": waits.append, "progress": lambda *step: told.append(step)}
        sidecar = StreamingGGUFLoader(load.cache, **options).load(source)
        load.opened.append(sidecar)
        assert_values(sidecar, expanded(source))
        assert sizes == [PIECE_BYTES, CHUNK_BYTES]
        assert waits == [0.1]
        assert told == sorted(told)
        assert told[-1][0] == told[-1][1]

    def test_progress_is_never_taken_back(self, load, source, monkeypatch):
        """A tensor that is tried again begins at nothing; a bar that jumps back looks broken."""
        written = threading.Event()
        write, read = os.pwrite, FileSource.readinto_at
        monkeypatch.setattr(os, "pwrite", lambda *a: (written.set(), write(*a))[1])
        n_reads = 0

        def fail_the_second(self, offset, buffer):
            nonlocal n_reads
            n_reads += bool(offset)
            if n_reads == 2:  # of the first tensor, when its first piece is there
                written.wait(TIMEOUT_S)
                raise OSError(errno.EIO, "stumbled")
            return read(self, offset, buffer)

        monkeypatch.setattr(FileSource, "readinto_at", fail_the_second)
        load(source)
        assert load.told == sorted(set(load.told))
        assert load.told[-1][0] == load.told[-1][1]

    def test_backoff_grows_and_ends(self, cache, source, monkeypatch):
        """Four attempts within a second, then the user hears of it."""
        failing(monkeypatch, OSError(errno.EIO, "dead"))
        waits = []
        with pytest.raises(ModelLoadError, match=f"in {MAX_ATTEMPTS} attempts.*dead"):
            StreamingGGUFLoader(cache, wait=waits.append).load(source)
        assert waits == [0.1, 0.2, 0.4]
        assert files_in(cache) == []

    def test_memory_that_stays_short_fails_the_load(self, load, cache, source, monkeypatch):
        """An error of the project's own, so that the server can answer with it."""

        def exhausted(*_):
            raise MemoryError

        monkeypatch.setattr(pipeline, "dequantize", exhausted)
        with pytest.raises(ModelLoadError, match="MemoryError"):
            load(source)
        assert files_in(cache) == []


class TestRefusal:
    def test_a_missing_file_is_named(self, load, tmp_path):
        with pytest.raises(ModelNotFoundError, match=r"none\.gguf"):
            load(tmp_path / "none.gguf")

    def test_a_truncated_file_is_refused_before_anything_is_written(self, load, cache, source):
        """Downloads break off; the message says what the file should have."""
        with source.open("r+b") as file:
            file.truncate(source.stat().st_size - 1000)
        with pytest.raises(GGUFTruncatedError):
            load(source)
        assert not cache.exists()

    def test_a_file_without_tensors_is_refused(self, load, tmp_path):
        """Files with a vocabulary alone are published too."""
        with pytest.raises(ModelUnsupportedError, match="no tensors"):
            load(write_gguf(tmp_path / "vocabulary.gguf", {}))

    def test_a_type_that_is_not_expanded_says_what_is(self, load, tmp_path):
        """Its name alone would not tell the user what to download instead."""
        path = write_gguf(
            tmp_path / "odd.gguf", {"a.weight": np.ones((2, 32), np.float32)}, "MXFP4"
        )
        with pytest.raises(GGUFTypeError, match=r"MXFP4.*Q8_0"):
            load(path)

    def test_a_value_that_is_not_finite_leaves_nothing(self, load, cache, tmp_path):
        """Neither half a sidecar nor one with NaN in it."""
        tensors = random_tensors()
        tensors["blk.1.attn_qkv.weight"][700, 3] = np.nan
        with pytest.raises(ModelLoadError, match=r"blk\.1\.attn_qkv\.weight.*not finite"):
            load(write_gguf(tmp_path / "broken.gguf", tensors))
        assert files_in(cache) == []

    def test_a_disk_too_small_is_told_first(self, load, cache, source, monkeypatch):
        """A disk that fills up midway takes down more than this program."""
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage(10, 0, 1 << 20))
        with pytest.raises(CacheSpaceError, match="MiB are free"):
            load(source)
        assert files_in(cache) == []

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
    def test_a_disk_that_fills_up_midway_leaves_nothing(
        self, load, cache, source, monkeypatch, code
    ):
        """What was written goes, so that there is room again."""

        def full(*_):
            raise OSError(code, "full")

        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(CacheSpaceError, match="cache evict"):
            load(source)
        assert files_in(cache) == []

    def test_a_cache_that_cannot_be_written_is_told(self, load, source, monkeypatch):
        """A read-only volume must not end in a traceback."""

        def refuse(*_, **__):
            raise OSError(errno.EROFS, "Read-only file system")

        monkeypatch.setattr(loader_module.os, "truncate", refuse)
        with pytest.raises(CacheError, match="Read-only"):
            load(source)

    def test_what_progress_raises_ends_the_load(self, load, cache, source):
        """The way to stop a load: nothing stays of it, and the next one works."""

        def interrupt(*_):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            load(source, progress=interrupt)
        assert files_in(cache) == []
        assert_values(load(source), expanded(source))


class TestFolder:
    @pytest.mark.parametrize("part", ["", "sidecars"])
    def test_a_symbolic_link_in_its_place_is_refused(self, load, cache, source, tmp_path, part):
        """Another user could turn it, and have their weights mapped."""
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (cache / part).parent.mkdir(parents=True, exist_ok=True)
        (cache / part).symlink_to(elsewhere)
        with pytest.raises(CacheUnsafeError, match="symbolic link"):
            load(source)
        assert list(elsewhere.iterdir()) == []

    def test_a_folder_that_everybody_may_write_to_is_refused(self, load, cache, source):
        """Any user could swap the weights under a running server."""
        cache.mkdir()
        cache.chmod(0o777)
        with pytest.raises(CacheUnsafeError, match="everybody"):
            load(source)

    def test_it_is_made_for_us_alone(self, load, cache, source):
        """Weights may be secret, and the folder is trusted."""
        folder = load(source).folder
        for path in (cache, cache / "sidecars", folder):
            assert path.stat().st_mode & 0o777 == 0o700

    def test_a_folder_in_memory_is_refused_unless_asked_for(self, load, source, monkeypatch):
        """Streaming weights into memory would take what it is there to save."""
        monkeypatch.setattr(files, "memory_file_system", lambda path: "tmpfs")
        with pytest.raises(CacheUnsafeError, match="memory limit"):
            load(source)
        assert_values(load(source, allow_memory_backed=True), expanded(source))


class TestIdentity:
    def test_a_changed_file_gets_a_sidecar_of_its_own(self, load, source):
        """The user exchanged the model: the old weights must not be served."""
        old = load(source)
        before = expanded(source)
        write_gguf(source, random_tensors(seed=1), "Q8_0")
        new = load(source)
        assert new.folder != old.folder
        assert_values(new, expanded(source))
        assert_values(old, before)

    def test_a_file_that_changes_while_it_is_read_is_refused(self, load, cache, source):
        """Half of one model and half of another would pass every other check."""

        def touch(done, total, phase):
            os.utime(source, ns=(1, done + 1))

        with pytest.raises(ModelLoadError, match="changed while"):
            load(source, progress=touch)
        assert files_in(cache) == []

    def test_a_file_cut_while_it_is_read_is_said_to_have_changed(self, load, cache, source):
        """That it ends too early is true, and not what went wrong."""

        def cut(done, total, phase):
            os.truncate(source, 4096)

        with pytest.raises(ModelLoadError, match="changed while"):
            load(source, progress=cut)
        assert files_in(cache) == []

    def test_a_change_while_waiting_for_the_lock_is_noticed(self, load, source, monkeypatch):
        """The header was read before: its offsets are not those of the new file."""
        lock = files.locked

        def change_first(path):
            write_gguf(source, random_tensors(seed=1), "Q8_0")
            return lock(path)

        monkeypatch.setattr(files, "locked", change_first)
        with pytest.raises(ModelLoadError, match="changed while"):
            load(source)

    def test_a_path_through_a_link_is_the_same_file(self, load, source, tmp_path):
        """Hubs keep files behind links; each would cost another copy."""
        (tmp_path / "link.gguf").symlink_to(source)
        assert load(tmp_path / "link.gguf").folder == load(source).folder


class TestReuse:
    @pytest.mark.parametrize("name", [INDEX_NAME, HEADER_NAME, WEIGHTS_NAME])
    @pytest.mark.parametrize("content", [None, b"", b"rubbish"])
    def test_a_damaged_sidecar_is_built_again(self, load, source, name, content):
        """The source is there: the user has nothing to do."""
        folder = load(source).folder
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)
        assert_values(load(source), expanded(source))

    def test_an_older_format_is_built_again(self, load, source):
        """After an update the first start takes a second longer."""
        index = load(source).folder / INDEX_NAME
        index.write_text(index.read_text().replace('"format_version": 1', '"format_version": 0'))
        assert_values(load(source), expanded(source))
        assert load.told != []

    def test_a_newer_format_is_refused_and_kept(self, load, source):
        """After a step back in versions the newer program's files must still be there."""
        index = load(source).folder / INDEX_NAME
        newer = index.read_text().replace('"format_version": 1', '"format_version": 2')
        index.write_text(newer)
        with pytest.raises(CacheError, match="newer Plimsoll"):
            load(source)
        assert index.read_text() == newer

    def test_damage_found_late_is_mended_by_the_next_load(self, load, source):
        """Close, load again: the weights are right, and the damaged ones gone."""
        sidecar = load(source)
        name = "blk.0.attn_qkv.weight"
        with sidecar.weights_path.open("r+b") as file:
            file.seek(sidecar.index.tensors[name].offset)
            file.write(b"damage")
        with pytest.raises(CacheCorruptError, match=name):
            sidecar.verify(name)
        assert_values(load(source), expanded(source))


class TestPlace:
    """Which file is mapped."""

    def test_a_float32_file_of_the_users_is_copied(self, load, float32_source):
        """Where the file system cannot clone; the layout is then ours."""
        sidecar = load(float32_source)
        assert sidecar.weights_path == sidecar.folder / WEIGHTS_NAME
        assert_values(sidecar, expanded(float32_source))

    def test_a_float32_file_is_cloned_where_that_works(self, load, float32_source, monkeypatch):
        """A clone takes no room and no time; it is checked like a copy."""

        def clone(target, request, source):
            assert request == 0x40049409
            os.sendfile(target, source, 0, os.fstat(source).st_size)

        monkeypatch.setattr(loader_module.fcntl, "ioctl", clone)
        sidecar = load(float32_source)
        assert sidecar.weights_path.read_bytes() == float32_source.read_bytes()
        assert sidecar.weights_path.parent == sidecar.folder
        assert_values(sidecar, expanded(float32_source))

    def test_a_clone_is_checked_itself(self, load, cache, float32_source, monkeypatch):
        """What will be mapped is what must be finite, not what it was made from."""

        def clone(target, request, source):
            data = bytearray(os.pread(source, os.fstat(source).st_size, 0))
            data[-4:] = np.float32(np.nan).tobytes()
            os.write(target, data)

        monkeypatch.setattr(loader_module.fcntl, "ioctl", clone)
        with pytest.raises(ModelLoadError, match="not finite"):
            load(float32_source)
        assert files_in(cache) == []

    def test_a_file_replaced_before_it_is_cloned_is_refused(
        self, load, float32_source, tmp_path, monkeypatch
    ):
        """The path may lead to another file than the one whose header was read."""
        lock = files.locked

        def replace_first(path):
            write_gguf(tmp_path / "new.gguf", random_tensors(1)).rename(float32_source)
            return lock(path)

        monkeypatch.setattr(files, "locked", replace_first)
        with pytest.raises(ModelLoadError, match="replaced"):
            load(float32_source)

    def test_what_plimsoll_built_is_mapped_where_it_lies(self, load, cache):
        """Only Plimsoll writes there: a second copy would be of no use."""
        built = cache / "built"
        built.mkdir(parents=True, mode=0o700)
        path = write_gguf(built / "model.gguf", random_tensors())
        sidecar = load(path)
        assert sidecar.weights_path == path
        assert sidecar.index.weights is WeightsPlace.BUILT
        assert files_in(cache) == whole(sidecar.folder)[:2]
        assert_values(sidecar, expanded(path))

    def test_a_link_among_the_built_files_is_not_trusted(self, load, cache, float32_source):
        """It leads to a file that another user may write to."""
        (cache / "built").mkdir(parents=True)
        (cache / "built" / "model.gguf").symlink_to(float32_source)
        assert load(cache / "built" / "model.gguf").index.weights is WeightsPlace.COPY

    def test_a_folder_of_built_files_that_is_a_link_is_not_trusted(
        self, load, cache, float32_source
    ):
        """As above, for all of them at once."""
        cache.mkdir(mode=0o700)
        (cache / "built").symlink_to(float32_source.parent)
        path = cache / "built" / float32_source.name
        assert load(path).index.weights is WeightsPlace.COPY

    def test_a_damaged_built_file_goes_with_its_sidecar(self, load, cache):
        """Damaged as it is, it would be checksummed anew and served; so it is made anew too."""
        (cache / "built").mkdir(parents=True, mode=0o700)
        path = write_gguf(cache / "built" / "model.gguf", random_tensors())
        sidecar = load(path)
        data = bytearray(path.read_bytes())
        data[-5000] ^= 1
        with path.open("r+b") as file:
            file.write(data)
        with pytest.raises(CacheCorruptError):
            list(map(sidecar.verify, sidecar.index.tensors))
        assert not path.exists()
        assert files_in(cache) == whole(sidecar.folder)[:1]

    def test_in_place_maps_the_users_file(self, load, cache, float32_source):
        """The way for a user who has no room, and leaves the file alone."""
        sidecar = load(float32_source, in_place=True)
        assert sidecar.weights_path == float32_source
        assert files_in(cache) == whole(sidecar.folder)[:2]
        assert_values(sidecar, expanded(float32_source))

    def test_a_changed_file_in_place_is_noticed_at_the_next_open(self, load, float32_source):
        """Its checksums are those of other weights."""
        folder = load(float32_source, in_place=True).folder
        os.utime(float32_source, ns=(1, 1))
        with pytest.raises(CacheCorruptError, match="changed"):
            Sidecar(folder)

    def test_in_place_does_nothing_for_quantized_files(self, load, source):
        """There is nothing in them that could be mapped."""
        assert load(source, in_place=True).index.weights is WeightsPlace.COPY


class TestSource:
    """What its owner does to a file under a running server."""

    CODE = (
        "import mmap, os, sys; from pathlib import Path\n"
        "from plimsoll.sidecar.loader import StreamingGGUFLoader\n"
        "path, cache, deed, in_place = sys.argv[1:]\n"
        "s = StreamingGGUFLoader(Path(cache), in_place=in_place == 'True').load(Path(path))\n"
        f"before = {ARRAYS}\n"
        "s.advise(list(s.index.tensors), mmap.MADV_DONTNEED)  # read from the file again\n"
        "size = os.stat(path).st_size\n"
        "if deed == 'truncate': os.truncate(path, 0)\n"
        "elif deed == 'overwrite': Path(path).open('r+b').write(bytes(size))\n"
        "else: os.unlink(path)\n"
        f"print('same' if {ARRAYS} == before else 'other')\n"
    )

    @pytest.mark.parametrize("deed", ["truncate", "overwrite", "delete"])
    @pytest.mark.parametrize("quant", ["F32", "Q8_0"])
    def test_it_neither_kills_nor_changes_vectors(self, cache, tmp_path, quant, deed):
        """The file is the user's, and users replace files."""
        path = write_gguf(tmp_path / "model.gguf", random_tensors(), quant)
        done = run(self.CODE, path, cache, deed, False)
        assert (done.returncode, done.stdout) == (0, "same\n")

    def test_in_place_it_does_kill(self, cache, float32_source):
        """The control for the test above, and the reason why the setting is called unsafe."""
        assert run(self.CODE, float32_source, cache, "truncate", True).returncode == -signal.SIGBUS

    def test_in_place_it_does_change_vectors(self, cache, float32_source):
        """As above: the deeds are seen where nothing protects from them."""
        assert run(self.CODE, float32_source, cache, "overwrite", True).stdout == "other\n"


class TestProcesses:
    def test_two_at_once_build_once(self, cache, source):
        """Two servers that start together share a cache: one works, the other waits for it."""
        code = (
            "import sys; from pathlib import Path\n"
            "from plimsoll.sidecar.loader import StreamingGGUFLoader\n"
            "told = []\n"
            "print('ready', flush=True); sys.stdin.readline()\n"
            "s = StreamingGGUFLoader(Path(sys.argv[2]), progress=lambda *t: told.append(t))\\\n"
            "    .load(Path(sys.argv[1]))\n"
            "for name in s.index.tensors: s.verify(name)\n"
            "print(bool(told), s.index.content_sha256)\n"
        )
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", code, str(source), str(cache)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        said = [process.communicate(timeout=TIMEOUT_S)[0].split() for process in processes]
        assert sorted(built for built, _ in said) == ["False", "True"]
        assert said[0][1] == said[1][1]

    def test_what_a_killed_load_left_is_swept_up_by_the_next(self, load, cache, source):
        """No clean-up runs in a killed process; what it left is as large as the model."""
        code = (
            "import os, signal, sys; from pathlib import Path\n"
            "from plimsoll.sidecar.loader import StreamingGGUFLoader\n"
            "StreamingGGUFLoader(Path(sys.argv[2]),\n"
            "    progress=lambda done, *_: done and os.kill(os.getpid(), signal.SIGKILL)\n"
            ").load(Path(sys.argv[1]))\n"
        )
        assert run(code, source, cache).returncode == -signal.SIGKILL
        assert [Path(name).name for name in files_in(cache)] == [
            *(Path(name).name for name in files_in(cache) if name.endswith(".lock")),
            WEIGHTS_NAME,
        ]
        sidecar = load(source)
        assert files_in(cache) == whole(sidecar.folder)
        assert_values(sidecar, expanded(source))

    def test_an_interrupt_ends_the_load_and_the_process(self, cache, source):
        """Ctrl-C while weights are read: no thread may keep the process alive."""
        code = (
            "import os, signal, sys; from pathlib import Path\n"
            "from plimsoll.sidecar.loader import StreamingGGUFLoader\n"
            "StreamingGGUFLoader(Path(sys.argv[2]),\n"
            "    progress=lambda done, *_: done and os.kill(os.getpid(), signal.SIGINT)\n"
            ").load(Path(sys.argv[1]))\n"
        )
        done = run(code, source, cache)
        assert done.returncode == -signal.SIGINT
        assert done.stderr.splitlines()[-1] == "KeyboardInterrupt"
        assert files_in(cache) == []

    def test_a_cache_that_is_removed_does_not_change_an_open_sidecar(self, load, cache, source):
        """`rm -r` on a running server: its map keeps the file alive."""
        sidecar = load(source)
        shutil.rmtree(cache)
        assert_values(sidecar, expanded(source))
