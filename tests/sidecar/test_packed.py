"""Packed weights on disk: made once, checked, put aside, removed with what they came from."""

import errno
import json
import os
from contextlib import closing
from pathlib import Path

import pytest

from plimsoll import files
from plimsoll.errors import CacheCorruptError, CacheError
from plimsoll.sidecar import checked_file, packed
from plimsoll.sidecar.index import CHUNK_BYTES
from plimsoll.sidecar.packed import PACKED_NAME, PackedFile, PackedWriter
from plimsoll.sidecar.sidecar import INDEX_NAME

SOURCE = bytes(range(251)) * 3000  # more than two chunks
BLOBS = [
    ("0.project", "a", 0, 100),
    ("0.project", "b", 7, 2 * CHUNK_BYTES + 5),
    ("1.project", "a", 3, 64),
]


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    parent = tmp_path / "sidecar"
    parent.mkdir(mode=0o700)
    return parent


def written(parent: Path, key: str = "k", source_bytes: bytes = SOURCE) -> Path:
    """A packed folder with a few blobs."""
    folder = packed.folder_of(parent, "float32", key)

    def write(writer: PackedWriter, scratch: Path) -> None:
        source = scratch / "source"
        source.write_bytes(source_bytes)
        fd = os.open(source, os.O_RDONLY)
        for blob in BLOBS:
            writer.add(blob[0], blob[1], fd, *blob[2:])
        os.close(fd)

    packed.make(folder, "a test", write)
    return folder


def test_blobs_are_found_by_graph_and_hold_what_was_given(parent: Path):
    """The backend asks for those of one graph, and maps them by their offsets."""
    with closing(PackedFile(written(parent))) as file:
        content = file.path.read_bytes()
        found = [(b.graph, b.key, b.n_bytes) for b in file.index.blobs]
        assert found == [(graph, key, n) for graph, key, _, n in BLOBS]
        assert [b.key for b in file.blobs("0.project")] == ["a", "b"]
        assert file.blobs("nothing") == ()
        for blob, (_, _, offset, n_bytes) in zip(file.index.blobs, BLOBS, strict=True):
            assert content[blob.offset :][:n_bytes] == SOURCE[offset:][:n_bytes]
            assert blob.offset % 4096 == 0 < blob.offset
        file.verify(["0.project", "1.project"])
    assert sorted(path.name for path in file.folder.iterdir()) == [INDEX_NAME, PACKED_NAME]


def test_a_blob_that_ends_early_is_refused_and_leaves_nothing(parent: Path):
    """As it is where the disk was full when a library closed its file, and did not look."""
    with pytest.raises(CacheError, match=r"a blob of 0\.project ends after 524292 bytes"):
        written(parent, source_bytes=SOURCE[: 7 + 2 * CHUNK_BYTES + 4])

    assert list(parent.iterdir()) == []


def test_a_damaged_blob_is_found_and_the_folder_made_anew(parent: Path):
    """Its vectors would look like any others."""
    folder = written(parent)
    with closing(PackedFile(folder)) as file:
        blob = file.index.blobs[1]
        flip(file.path, blob.offset + CHUNK_BYTES + 1)
        with closing(packed.open_file(folder)) as again:
            assert list(again.damages()) == [
                (blob.name, blob.offset + CHUNK_BYTES, blob.offset + 2 * CHUNK_BYTES)
            ]
        file.verify(["1.project"])
        with pytest.raises(CacheCorruptError, match=r"damaged in 0\.project"):
            file.verify(["0.project"])
    assert packed.packed_folders(parent) == []
    with pytest.raises(CacheCorruptError):
        PackedFile(folder)

    with closing(PackedFile(written(parent))) as file:
        file.verify(["0.project"])


@pytest.mark.parametrize("damage", ["index", "size", "gone"])
def test_what_cannot_be_opened_is_put_aside_and_made_again(parent: Path, damage: str):
    """Left in its place, it would keep the model from opening for ever."""
    folder = written(parent)
    if damage == "index":
        flip(folder / INDEX_NAME, 40)
    elif damage == "size":
        os.truncate(folder / PACKED_NAME, 4096)
    else:
        (folder / PACKED_NAME).unlink()
    with pytest.raises(CacheCorruptError):
        PackedFile(folder)

    with closing(PackedFile(written(parent))) as file:
        file.verify(["0.project", "1.project"])


def test_what_the_system_refuses_to_open_is_not_put_aside(
    parent: Path, monkeypatch: pytest.MonkeyPatch
):
    """Too many open files, or no memory for a map, say nothing of what is in the file."""
    folder = written(parent)

    def refuse(*given: object, **options: object) -> None:
        raise OSError(errno.ENOMEM, "no memory")

    with monkeypatch.context() as patched:
        patched.setattr(checked_file.mmap, "mmap", refuse)
        with pytest.raises(CacheError, match="cannot be opened") as caught:
            PackedFile(folder)

    assert not isinstance(caught.value, CacheCorruptError)
    PackedFile(folder).close()


def test_a_newer_format_is_left_alone(parent: Path):
    """Another version of Plimsoll uses it."""
    index = written(parent) / INDEX_NAME
    document = json.loads(index.read_text()) | {"format_version": packed.FORMAT_VERSION + 1}
    index.write_text(json.dumps(document))
    with pytest.raises(CacheError, match="newer Plimsoll"):
        PackedFile(index.parent)


def test_a_making_that_fails_or_was_killed_leaves_nothing(parent: Path):
    """Half a file must not be mapped, nor take room for ever."""
    folder = packed.folder_of(parent, "float32", "k")

    def fail(writer: PackedWriter, scratch: Path) -> None:
        raise OSError("the disk is full")

    with pytest.raises(CacheError):
        packed.make(folder, "a test", fail)
    assert list(parent.iterdir()) == []

    files.temporary_of(folder).mkdir()  # of a process that was killed
    assert written(parent) == folder
    assert [path.name for path in parent.iterdir()] == [folder.name]


def test_what_is_there_is_not_made_again(parent: Path):
    """Another process may have made it while this one waited."""
    folder = written(parent)

    def fail(writer: PackedWriter, scratch: Path) -> None:
        raise AssertionError("made again")

    packed.make(folder, "a test", fail)


def test_what_other_versions_packed_goes_unless_it_is_open(parent: Path):
    """An upgrade of a library would otherwise leave half a gigabyte a model behind."""
    old, used, new = (written(parent, key) for key in ("old", "used", "new"))
    int8 = packed.folder_of(parent, "int8", "old")
    int8.mkdir()
    with closing(PackedFile(used)):
        packed.remove(parent, "float32", kept=new)
        assert [path.exists() for path in (old, used, new, int8)] == [False, True, True, True]


def test_what_a_killed_process_has_half_made_goes_unless_another_makes_it(parent: Path):
    """After an upgrade no process would ever go on with it."""
    left, making = (packed.folder_of(parent, "float32", key) for key in ("left", "making"))
    for folder in (left, making):
        temporary = files.temporary_of(folder)
        temporary.mkdir()
        (temporary / PACKED_NAME).write_bytes(SOURCE)

    with files.locked(files.lock_of(making)):
        packed.remove(parent, "float32")

    assert list(parent.iterdir()) == [files.temporary_of(making)]


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1]))
