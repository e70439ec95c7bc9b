"""The sidecar: its index, and what an open one makes of damage."""

import errno
import json
import mmap
import shutil
from pathlib import Path

import numpy as np
import pytest

from plimsoll import files
from plimsoll.errors import CacheCorruptError, CacheError
from plimsoll.gguf.reader import TensorInfo
from plimsoll.gguf.types import GGMLType
from plimsoll.sidecar.index import (
    CHUNK_BYTES,
    FORMAT_VERSION,
    LAYER_ALIGNMENT,
    TENSOR_ALIGNMENT,
    SidecarIndex,
    SourceRecord,
    TensorPlace,
    WeightsPlace,
    chunk_bounds,
    lay_out,
    parse_index,
)
from plimsoll.sidecar.loader import StreamingGGUFLoader
from plimsoll.sidecar.sidecar import HEADER_NAME, INDEX_NAME, WEIGHTS_NAME, Sidecar
from tests.gguf_weights import expanded, random_tensors, write_gguf

INDEX = SidecarIndex(
    compute="float32",
    source=SourceRecord("/models/ü.gguf", 10, 20, 30),
    content_sha256="ab" * 32,
    header_checksum="cd" * 8,
    weights=WeightsPlace.COPY,
    weights_bytes=4096,
    tensors={"a": TensorPlace("a", (2, 3), 64, bytes(range(8)))},
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A source, and the sidecar that was made of it; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    source = write_gguf(folder / "model.gguf", random_tensors(), "Q8_0")
    sidecar = StreamingGGUFLoader(folder / "cache").load(source)
    sidecar.close()
    return source, sidecar.folder


@pytest.fixture
def folder(made, tmp_path):
    """A sidecar to be damaged."""
    return shutil.copytree(made[1], tmp_path / "sidecar")


@pytest.fixture
def opened(folder):
    sidecar = Sidecar(folder)
    yield sidecar
    sidecar.close()


def flip(path, offset):
    """Change one bit of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


class TestIndex:
    def test_it_is_read_as_it_was_written(self):
        """It is the only way to the weights."""
        assert parse_index(INDEX.to_json(), "a sidecar") == INDEX

    def test_any_changed_character_is_found(self):
        """A digit in a shape or in the content's hash would go unnoticed otherwise."""
        text = INDEX.to_json()
        for i, character in enumerate(text):
            damaged = text[:i] + chr(ord(character) ^ 1) + text[i + 1 :]
            with pytest.raises(CacheError):
                parse_index(damaged, "a sidecar")

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"format_version": 1}'])
    def test_what_is_no_index_is_corrupt(self, text):
        """It is built again: no exception but this one may come out."""
        with pytest.raises(CacheCorruptError):
            parse_index(text, "a sidecar")

    def test_an_older_format_is_built_again(self):
        """The source is there, and a conversion takes a second."""
        text = INDEX.to_json().replace(
            f'"format_version": {FORMAT_VERSION}', f'"format_version": {FORMAT_VERSION - 1}'
        )
        with pytest.raises(CacheCorruptError, match="older"):
            parse_index(text, "a sidecar")

    def test_a_newer_format_is_left_alone(self):
        """After a step back in versions the newer program's files must still be there."""
        document = json.loads(INDEX.to_json()) | {"format_version": FORMAT_VERSION + 1}
        with pytest.raises(CacheError, match="newer") as caught:
            parse_index(json.dumps(document), "a sidecar")
        assert not isinstance(caught.value, CacheCorruptError)

    def test_each_layer_begins_on_a_page_of_its_own(self):
        """Dropping a layer's pages must not take its neighbour's."""
        names = ["blk.1.b", "token_embd.weight", "blk.10.a", "blk.1.a", "blk.2.a", "blk.x"]
        tensors = [TensorInfo(name, (7,), GGMLType.F32, 0, 28) for name in names]
        placed, size = lay_out(tensors)
        offsets = {tensor.name: offset for tensor, offset in placed}
        assert list(offsets) == [
            *("blk.x", "token_embd.weight", "blk.1.a", "blk.1.b", "blk.2.a", "blk.10.a")
        ]
        assert offsets["blk.1.b"] == offsets["blk.1.a"] + TENSOR_ALIGNMENT
        for first in ("blk.x", "blk.1.a", "blk.2.a", "blk.10.a"):
            assert offsets[first] % LAYER_ALIGNMENT == 0
        assert len({offset // LAYER_ALIGNMENT for offset in offsets.values()}) == 4
        assert size == 4 * LAYER_ALIGNMENT


class TestOpen:
    def test_tensors_are_those_of_the_source(self, made, opened):
        """gguf-py reads the same file and must find the same numbers."""
        for name, values in expanded(made[0]).items():
            np.testing.assert_array_equal(opened.array(name), values)
            opened.verify(name)

    def test_the_header_is_the_sources_own(self, opened):
        """Vocabulary and metadata come from the folder once the source is gone."""
        assert opened.header.metadata["general.name"] == "test"

    @pytest.mark.parametrize("name", [INDEX_NAME, HEADER_NAME, WEIGHTS_NAME])
    def test_a_missing_file_is_corrupt(self, folder, name):
        """It is built again."""
        (folder / name).unlink()
        with pytest.raises(CacheCorruptError):
            Sidecar(folder)

    @pytest.mark.parametrize("offset", [0, 30, 200, -1])
    def test_a_damaged_header_is_corrupt(self, folder, offset):
        """A changed vocabulary gives wrong vectors without any other sign."""
        size = (folder / HEADER_NAME).stat().st_size
        flip(folder / HEADER_NAME, offset % size)
        with pytest.raises(CacheCorruptError, match=HEADER_NAME):
            Sidecar(folder)

    @pytest.mark.parametrize("change", [-1, 1])
    def test_weights_of_another_size_are_corrupt(self, folder, change):
        """Reading past the end of a map kills the process."""
        path = folder / WEIGHTS_NAME
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size + change)
        with pytest.raises(CacheCorruptError, match="bytes, not"):
            Sidecar(folder)

    @pytest.mark.parametrize("code", [errno.EMFILE, errno.EACCES, errno.ENOMEM])
    def test_a_system_that_refuses_is_no_damage(self, folder, monkeypatch, code):
        """Too many open files must not cost the cache."""

        def refuse(*_, **__):
            raise OSError(code, "refused")

        monkeypatch.setattr(mmap, "mmap", refuse)
        with pytest.raises(CacheError, match="refused") as caught:
            Sidecar(folder)
        assert not isinstance(caught.value, CacheCorruptError)

    def test_it_is_in_use_until_it_is_closed(self, folder):
        """Evicting goes by this."""
        sidecar = Sidecar(folder)
        assert files.in_use(folder / INDEX_NAME)
        sidecar.close()
        assert not files.in_use(folder / INDEX_NAME)

    def test_one_that_does_not_open_is_not_in_use(self, folder):
        """Otherwise it could never be removed."""
        flip(folder / HEADER_NAME, 100)
        with pytest.raises(CacheCorruptError):
            Sidecar(folder)
        assert not files.in_use(folder / INDEX_NAME)

    def test_two_may_be_open_at_once(self, folder, opened):
        """Several processes share a cache."""
        Sidecar(folder).close()

    def test_it_does_not_close_under_an_array(self, opened):
        """Memory that is still read must not be unmapped."""
        array = opened.array("token_embd_norm.weight")
        with pytest.raises(BufferError):
            opened.close()
        assert np.isfinite(array).all()


class TestDamage:
    NAME = "blk.1.attn_qkv.weight"

    def damage(self, folder, chunk):
        sidecar = Sidecar(folder)
        start, _ = chunk_bounds(sidecar.index.tensors[self.NAME], chunk)
        sidecar.close()
        flip(folder / WEIGHTS_NAME, start + 5)
        return start

    def test_it_is_found_at_the_first_read(self, folder):
        """A changed weight gives vectors that look like any others."""
        start = self.damage(folder, 1)
        sidecar = Sidecar(folder)
        with pytest.raises(CacheCorruptError, match=f"{self.NAME}, bytes {start} to"):
            sidecar.verify(self.NAME)
        sidecar.close()

    def test_chunks_that_are_not_asked_for_are_not_read(self, folder):
        """A vocabulary table of 90 MB must not be read for one text."""
        self.damage(folder, 1)
        sidecar = Sidecar(folder)
        sidecar.verify(self.NAME, 0, CHUNK_BYTES)
        sidecar.verify(self.NAME, 2 * CHUNK_BYTES, 2 * CHUNK_BYTES + 4)
        with pytest.raises(CacheCorruptError):
            sidecar.verify(self.NAME, CHUNK_BYTES - 4, CHUNK_BYTES + 4)
        sidecar.close()

    def test_a_chunk_is_verified_once(self, folder, opened):
        """Each pass over the weights would be paid for twice."""
        opened.verify(self.NAME)
        self.damage(folder, 0)
        opened.verify(self.NAME)

    def test_the_next_open_builds_it_again(self, folder):
        """Otherwise every start would end with the same error."""
        self.damage(folder, 0)
        sidecar = Sidecar(folder)
        with pytest.raises(CacheCorruptError, match="built again"):
            sidecar.verify(self.NAME)
        sidecar.close()
        with pytest.raises(CacheCorruptError, match="incomplete"):
            Sidecar(folder)

    def test_one_that_was_built_again_meanwhile_is_left_alone(self, made, folder):
        """Two processes find the same damage; the second must not throw the new one away."""
        self.damage(folder, 0)
        sidecar = Sidecar(folder)
        shutil.rmtree(folder)
        shutil.copytree(made[1], folder)
        with pytest.raises(CacheCorruptError):
            sidecar.verify(self.NAME)
        sidecar.close()
        Sidecar(folder).close()

    def test_a_cache_that_cannot_be_written_is_told(self, folder, monkeypatch):
        """Then the operator has to remove it."""
        self.damage(folder, 0)
        sidecar = Sidecar(folder)

        def refuse(*_, **__):
            raise OSError(errno.EROFS, "Read-only file system")

        monkeypatch.setattr(Path, "unlink", refuse)
        with pytest.raises(CacheCorruptError, match=f"remove {folder}"):
            sidecar.verify(self.NAME)
        sidecar.close()

    def test_a_file_that_became_shorter_is_found_without_dying(self, folder, opened):
        """The check does not read through the map: a signal would take all requests with it."""
        with (folder / WEIGHTS_NAME).open("r+b") as file:
            file.truncate(LAYER_ALIGNMENT)
        with pytest.raises(CacheCorruptError):
            opened.verify(self.NAME)

    def test_all_of_it_can_be_listed(self, folder):
        """`cache verify` names every damaged place."""
        starts = [self.damage(folder, chunk) for chunk in (0, 2)]
        sidecar = Sidecar(folder)
        assert [start for start, _ in sidecar.damaged_chunks(self.NAME)] == starts
        assert sidecar.damaged_chunks("blk.0.attn_qkv.weight") == []
        sidecar.close()
        Sidecar(folder).close()


class TestAdvice:
    @pytest.mark.parametrize("advice", [mmap.MADV_WILLNEED, mmap.MADV_DONTNEED])
    def test_it_never_changes_values(self, made, opened, advice):
        """Dropped pages are read again, and are the same."""
        names = list(opened.index.tensors)
        opened.advise(names, advice)
        for name, values in expanded(made[0]).items():
            np.testing.assert_array_equal(opened.array(name), values)

    def test_only_the_named_tensors_pages_are_touched(self, opened, monkeypatch):
        """A clone keeps its source's order, where a layer's tensors may lie far apart."""
        touched = []

        class Map:
            def madvise(self, advice, start, length):
                touched.append((start, start + length))

        with monkeypatch.context() as patch:
            patch.setattr(opened._weights, "map", Map())
            names = ["blk.0.attn_qkv.weight", "token_embd.weight"]
            opened.advise(names, mmap.MADV_DONTNEED)
        places = [opened.index.tensors[name] for name in names]
        assert len(touched) == 2
        for start, end in touched:
            assert start % mmap.PAGESIZE == end % mmap.PAGESIZE == 0
            assert any(p.offset <= start and end <= p.offset + p.n_bytes for p in places)
