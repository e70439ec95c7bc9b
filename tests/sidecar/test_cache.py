"""Listing, verifying and evicting what is in the cache, with live processes around."""

import os
import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from plimsoll import files
from plimsoll.errors import CacheCorruptError, CacheError, CacheUnsafeError
from plimsoll.sidecar.cache import SourceState, evict, list_models, list_sidecars, verify
from plimsoll.sidecar.index import chunk_bounds
from plimsoll.sidecar.loader import StreamingGGUFLoader
from plimsoll.sidecar.sidecar import HEADER_NAME, INDEX_NAME, WEIGHTS_NAME, Sidecar
from tests.gguf_weights import random_tensors, write_gguf

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 60


@pytest.fixture
def folder(cache, source):
    """A sidecar that is not open."""
    return load(cache, source)


def load(cache, source):
    sidecar = StreamingGGUFLoader(cache).load(source)
    sidecar.close()
    return sidecar.folder


def only(cache):
    (entry,) = list_sidecars(cache)
    return entry


def keys(cache):
    return {entry.key for entry in list_sidecars(cache)}


class TestList:
    def test_where_there_is_no_cache_there_is_nothing(self, cache):
        """Looking must not make one."""
        assert list_sidecars(cache) == []
        assert list_models(cache) == []
        assert not cache.exists()

    def test_an_entry_tells_what_an_operator_wants_to_know(self, cache, source, folder):
        """Which model, how large, how old, and whether it may go."""
        entry = only(cache)
        assert (entry.key, entry.folder) == (folder.name, folder)
        assert (entry.source_path, entry.source_state) == (source, SourceState.UNCHANGED)
        assert entry.compute == "float32"
        assert entry.n_bytes == sum(path.stat().st_size for path in folder.iterdir())
        assert datetime.now(UTC) - entry.created < timedelta(minutes=1)
        assert (entry.in_use, entry.fault, entry.is_stale) == (False, None, False)

    def test_the_newest_comes_first(self, cache, source, tmp_path):
        """What was just made is what one looks for."""
        old = load(cache, source)
        os.utime(old / INDEX_NAME, ns=(1, 1))
        new = load(cache, write_gguf(tmp_path / "other.gguf", random_tensors(1)))
        assert [entry.key for entry in list_sidecars(cache)] == [new.name, old.name]

    def test_one_that_is_open_is_in_use(self, cache, folder):
        sidecar = Sidecar(folder)
        assert only(cache).in_use
        sidecar.close()
        assert not only(cache).in_use

    @pytest.mark.usefixtures("folder")
    def test_a_source_that_is_gone_makes_it_stale(self, cache, source):
        """No load asks for it any more."""
        source.unlink()
        assert (only(cache).source_state, only(cache).is_stale) == (SourceState.MISSING, True)

    @pytest.mark.usefixtures("folder")
    def test_a_source_that_has_changed_makes_it_stale(self, cache, source):
        """The next load builds another."""
        os.utime(source, ns=(1, 1))
        assert (only(cache).source_state, only(cache).is_stale) == (SourceState.CHANGED, True)

    def test_a_damaged_one_is_listed_with_its_fault(self, cache, folder):
        """It takes room like any other."""
        (folder / INDEX_NAME).write_text("{}")
        entry = only(cache)
        assert (entry.source_state, entry.is_stale) == (SourceState.UNKNOWN, True)
        assert "index" in entry.fault

    def test_one_of_a_newer_version_is_not_stale(self, cache, folder):
        """It belongs to a program that is not here to defend it."""
        index = folder / INDEX_NAME
        index.write_text(index.read_text().replace('"format_version": 1', '"format_version": 2'))
        assert "newer" in only(cache).fault
        assert not only(cache).is_stale

    def test_model_files_are_listed_with_their_sizes(self, cache):
        """They are most of what a cache holds, besides."""
        for name, size in (("models/a.gguf", 3), ("models/.a.lock", 0), ("built/b.gguf", 4)):
            path = cache / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(size))
        assert [(file.path, file.n_bytes, file.built) for file in list_models(cache)] == [
            (cache / "models" / "a.gguf", 3, False),
            (cache / "built" / "b.gguf", 4, True),
        ]

    def test_a_link_in_the_folders_place_is_refused(self, cache, tmp_path):
        """Evicting behind it would remove another's files."""
        (tmp_path / "elsewhere").mkdir()
        cache.mkdir()
        (cache / "sidecars").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(CacheUnsafeError):
            list_sidecars(cache)

    def test_one_that_vanishes_during_the_look_is_left_out(self, cache, folder, monkeypatch):
        """Another process evicts while we look."""
        in_use = files.in_use

        def remove_first(path):
            shutil.rmtree(folder)
            return in_use(path)

        monkeypatch.setattr(files, "in_use", remove_first)
        assert list_sidecars(cache) == []


class TestVerify:
    @pytest.mark.usefixtures("folder")
    def test_a_good_one_has_no_damage(self, cache):
        told = []
        assert verify(only(cache), lambda *step: told.append(step)) == []
        total = sum(4 * values.size for values in random_tensors().values())
        assert told == sorted(told)
        assert told[-1] == (total, total)

    def test_every_damaged_place_is_named(self, cache, folder):
        """A disk that loses one block often loses more."""
        sidecar = Sidecar(folder)
        places = [
            sidecar.index.tensors[name] for name in ("token_embd.weight", "blk.1.attn_qkv.weight")
        ]
        sidecar.close()
        with (folder / WEIGHTS_NAME).open("r+b") as file:
            for place in places:
                file.seek(chunk_bounds(place, 1)[0])
                file.write(b"damage")
        found = {(damage.place, damage.fault) for damage in verify(only(cache))}
        bounds = {place.name: chunk_bounds(place, 1) for place in places}
        assert found == {
            (name, f"bytes {start} to {stop}") for name, (start, stop) in bounds.items()
        }

    def test_a_damaged_one_is_built_again_by_the_next_load(self, cache, source, folder):
        """To run the check is enough: the operator has to remove nothing else."""
        with (folder / WEIGHTS_NAME).open("r+b") as file:
            file.write(b"damage")
        assert verify(only(cache))
        assert only(cache).is_stale
        load(cache, source)
        assert verify(only(cache)) == []

    def test_a_damaged_header_is_told(self, cache, folder):
        entry = only(cache)
        (folder / HEADER_NAME).write_bytes(b"GGUF")
        with pytest.raises(CacheCorruptError):
            verify(entry)

    @pytest.mark.usefixtures("folder")
    def test_what_is_being_verified_is_in_use(self, cache):
        """It must not be removed under the reader."""
        refused = []
        entry = only(cache)
        verify(entry, lambda *_: refused.extend(evict(cache).in_use))
        assert refused
        assert keys(cache) == {entry.key}


class TestEvict:
    @pytest.fixture
    def two(self, cache, source, tmp_path):
        """Two sidecars; the second one's source is gone."""
        other = write_gguf(tmp_path / "other.gguf", random_tensors(1))
        folders = load(cache, source), load(cache, other)
        other.unlink()
        return [folder.name for folder in folders]

    def test_without_keys_all_go(self, cache, two):
        eviction = evict(cache)
        assert {entry.key for entry in eviction.removed} == set(two)
        assert eviction.removed_bytes == sum(entry.n_bytes for entry in eviction.removed) > 0
        assert list((cache / "sidecars").iterdir()) == []

    def test_only_the_named_one_goes(self, cache, two):
        evict(cache, [two[0]])
        assert keys(cache) == {two[1]}

    def test_only_the_stale_go_when_asked(self, cache, two):
        """What a cron job would do every night."""
        evict(cache, stale_only=True)
        assert keys(cache) == {two[0]}

    def test_an_unknown_key_removes_nothing(self, cache, two):
        """A mistyped list must not be half done."""
        with pytest.raises(CacheError, match="nonsense"):
            evict(cache, [two[0], "nonsense"])
        assert keys(cache) == set(two)

    def test_an_evicted_one_is_made_again(self, cache, source, folder):
        evict(cache)
        assert load(cache, source) == folder

    def test_one_that_is_open_in_this_process_is_refused(self, cache, folder):
        sidecar = Sidecar(folder)
        eviction = evict(cache)
        assert ([entry.key for entry in eviction.in_use], eviction.removed) == ([folder.name], ())
        sidecar.close()
        assert evict(cache).removed

    def test_one_that_is_open_in_another_process_is_refused(self, cache, folder):
        """A server would have to convert again, under load; until it ends, however it ends."""
        code = (
            "import sys; from pathlib import Path\n"
            "from plimsoll.sidecar.sidecar import Sidecar\n"
            "s = Sidecar(Path(sys.argv[1])); print('open', flush=True); sys.stdin.read()\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code, str(folder)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout.readline() == "open\n"
            assert only(cache).in_use
            assert [entry.key for entry in evict(cache).in_use] == [folder.name]
            process.send_signal(signal.SIGKILL)
            process.wait(TIMEOUT_S)
        assert not only(cache).in_use
        assert [entry.key for entry in evict(cache).removed] == [folder.name]

    def test_one_that_is_being_made_is_refused(self, cache, source):
        """Its temporary folder is half a model, and another process works on it."""
        seen = []

        def look(*_):
            seen.append((only(cache), evict(cache)))

        StreamingGGUFLoader(cache, progress=look).load(source).close()
        assert seen
        for entry, eviction in seen:
            assert (entry.in_use, entry.is_stale, entry.fault) == (True, False, "it is being made")
            assert eviction.removed == ()
        assert only(cache).fault is None

    def test_what_a_killed_load_left_goes_with_the_stale(self, cache, folder):
        """As large as a model, and of no use."""
        left = files.temporary_of(folder)
        folder.rename(left)
        (left / INDEX_NAME).unlink()
        files.lock_of(folder).touch()
        assert (only(cache).in_use, only(cache).is_stale) == (False, True)
        assert "stopped" in only(cache).fault
        evict(cache, stale_only=True)
        assert list((cache / "sidecars").iterdir()) == []
