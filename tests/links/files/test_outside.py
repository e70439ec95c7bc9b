"""Files as a collection's home: read in pages, written in parts, and a pointer that is changed."""

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from pyarrow import parquet

from plimsoll.corpora.records import Space, text_sha256
from plimsoll.errors import OutsideMismatchError, OutsideUnavailableError
from plimsoll.links.configuration import FileLink
from plimsoll.links.files import parts, sets
from plimsoll.links.files.manifest import POINTER, current
from plimsoll.links.files.outside import FileOutside
from plimsoll.links.files.paths import files_of
from plimsoll.links.files.reading import read_rows
from plimsoll.links.files.rows import Columns, FileRow
from plimsoll.links.outside import PAGE_BYTES, PAGE_ROWS
from plimsoll.links.records import OutgoingRow, OutsideRow
from plimsoll.links.server import ServerIdentity
from tests.small_disk import filled, small_disk

N = 300
HOME = Space.foreign("ada-002", 3)
NEW = Space("v1:new", 2, "new")
KINDS = ("jsonl", "parquet")


def record(k: int, text: str | None = None) -> dict[str, Any]:
    return {"id": f"r{k}", "text": text or f"text {k}", "year": k, "embedding": [k, 0.5, -k]}


def write(path: Path, records: Sequence[dict[str, Any]]) -> None:
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(records), path, row_group_size=50)
    else:
        path.write_bytes(b"".join(orjson.dumps(each) + b"\n" for each in records))


def link_of(folder: Path, kind: str) -> FileLink:
    return FileLink(
        kind=kind,
        files=(str(folder / "source" / f"*.{kind}"),),
        folder=folder / "moved",
        vector="embedding",
        space="ada-002",
        dimensions=3,
    )


def outside_of(link: FileLink) -> FileOutside:
    """What a server with the same data folder, whichever its process, makes of a link."""
    return FileOutside(link, ServerIdentity(Path(link.files[0]).parent.parent / "data"))


@pytest.fixture(params=KINDS)
def link(request: pytest.FixtureRequest, tmp_path: Path) -> FileLink:
    """Two files of N rows together."""
    (tmp_path / "source").mkdir()
    for number, rows in enumerate((range(200), range(200, N))):
        file = tmp_path / "source" / f"{number}.{request.param}"
        write(file, [record(k) for k in rows])
    return link_of(tmp_path, request.param)


@pytest.fixture
def outside(link: FileLink) -> Iterator[FileOutside]:
    with closing(outside_of(link)) as outside:
        outside.follow(HOME)
        yield outside


@pytest.mark.parametrize("folder", ["source", "."])
def test_a_folder_that_is_read_gets_no_vectors(link, tmp_path, folder):
    """After a cut-over its pointer would name what is read, and no file of the operator's."""
    shared = link.model_copy(
        update={"files": (str(tmp_path / "source"),), "folder": tmp_path / folder}
    )
    with closing(outside_of(shared)) as outside:
        with pytest.raises(OutsideMismatchError, match="name another folder"):
            outside.follow(HOME)
        assert any(found.blocks for found in outside.survey().findings)
    assert not list(tmp_path.glob("**/home.json"))


def pulled(outside: FileOutside, position: str | None = None) -> list[OutsideRow]:
    """All rows behind a position."""
    rows = list[OutsideRow]()
    while True:
        page = outside.page(position)
        assert len(page.rows) <= PAGE_ROWS
        rows += page.rows
        position = page.position
        if position is None:
            assert not page.rows
            return rows


def outgoing(numbers: range = range(N), text: str = "text {}") -> list[OutgoingRow]:
    """Rows with a vector that says which it is."""
    texts = {k: text.format(k) for k in numbers}
    return [
        OutgoingRow(f"r{k}", texts[k], text_sha256(texts[k]), np.array([k, 1], np.float32))
        for k in numbers
    ]


def everyone(ids: Sequence[str]) -> frozenset[str]:
    return frozenset(ids)


def pushed(outside: FileOutside, rows: Sequence[OutgoingRow], space: Space = NEW) -> None:
    for start in range(0, len(rows), PAGE_ROWS):
        some = rows[start : start + PAGE_ROWS]
        assert outside.push(space, some).stored == {row.id for row in some}


def move(outside: FileOutside, rows: Sequence[OutgoingRow] | None = None) -> None:
    outside.prepare(NEW)
    pushed(outside, outgoing() if rows is None else rows)
    outside.finish(NEW, everyone)


def read(folder: Path, vector: str = "embedding") -> dict[str, FileRow]:
    """What others read there, as any import of it."""
    rows = list(read_rows(files_of(str(folder)), Columns(vector=vector)))
    assert all(isinstance(row, FileRow) for row in rows)
    return {row.id: row for row in rows}


def content(folder: Path) -> dict[str, bytes]:
    """Every file by its name, but locks, and those of SQLite, whose pages may lie otherwise."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "sqlite" not in path.name and path.suffix != ".lock"
    }


def test_pages_are_all_rows_in_order_with_their_vectors(outside: FileOutside):
    rows = pulled(outside)

    assert [row.id for row in rows] == [f"r{k}" for k in range(N)]
    assert rows[250].text == "text 250"
    assert rows[250].vector is not None
    assert rows[250].vector.tolist() == [250, 0.5, -250]


def test_another_process_goes_on_at_a_position(link: FileLink, outside: FileOutside):
    """Between two files, too: the position says which."""
    position, seen = None, 0
    while True:
        page = outside.page(position)
        seen, position = seen + len(page.rows), page.position
        if position is None:
            break
        with closing(outside_of(link)) as other:
            assert [row.id for row in pulled(other, position)] == [f"r{k}" for k in range(seen, N)]
        again = outside.page(position)  # this one may ask again, too
        assert [row.id for row in again.rows][:1] == [f"r{k}" for k in range(seen, N)][:1]


def test_a_position_in_files_that_have_changed_begins_at_the_first(
    link: FileLink, outside: FileOutside, tmp_path: Path
):
    """What is there already is skipped by its text; a row that came before is not passed over."""
    position = outside.page(None).position
    write(tmp_path / "source" / f"0.{link.kind}", [record(k) for k in (900, 1, 2)])
    with closing(outside_of(link)) as other:
        rows = pulled(other, position)

    assert [row.id for row in rows[:4]] == ["r900", "r1", "r2", "r200"]
    assert {row.id for row in rows} <= {row.id for row in pulled(outside, position)}


def test_an_id_that_comes_twice_is_taken_once(link: FileLink, outside: FileOutside, tmp_path: Path):
    """Its first row, whenever the reading was interrupted; the survey says where the other is."""
    twice = [record(1, "another text"), record(299, "one more")]
    write(tmp_path / "source" / f"2.{link.kind}", twice)
    first = outside.page(None)

    with closing(outside_of(link)) as other:
        rows = [*first.rows, *pulled(other, first.position)]

    assert len(rows) == N
    assert {row.id: row.text for row in rows}["r1"] == "text 1"
    told = outside.survey().findings[0].message
    assert told.startswith("2 rows become no document")
    assert f"2.{link.kind} row 1: the id 'r1' has come before" in told


def test_a_row_without_text_is_one_without_and_a_bad_vector_is_left_out(tmp_path: Path):
    (tmp_path / "source").mkdir()
    rows = [
        record(0),
        {**record(1), "text": None},
        {**record(2), "embedding": [1, 2]},
        {**record(3), "embedding": [1, None, 2]},
        {**record(4), "embedding": None},
        {"text": "no id"},
    ]
    write(tmp_path / "source" / "0.jsonl", rows)
    with closing(outside_of(link_of(tmp_path, "jsonl"))) as outside:
        read_rows = pulled(outside)
        survey = outside.survey()

    assert [row.id for row in read_rows] == ["r0", "r1", "r2", "r3", "r4"]
    assert [row.text is None for row in read_rows] == [False, True, False, False, False]
    assert [row.vector is None for row in read_rows] == [False, True, True, True, True]
    assert (survey.n_rows, survey.n_without_text, survey.n_without_vector) == (6, 2, 2)
    assert (survey.dimensions, survey.active) == (3, None)
    told = [finding.message for finding in survey.findings]
    assert "0.jsonl row 6: id is missing" in told[0]
    assert "0.jsonl row 4: embedding[1] is no finite" in told[1]
    assert "several sizes" in told[2]


def test_a_page_is_bounded_by_its_texts(tmp_path: Path):
    (tmp_path / "source").mkdir()
    sizes = [PAGE_BYTES // 2, PAGE_BYTES // 2, 1, 2 * PAGE_BYTES - 1000, 1]
    write(tmp_path / "source" / "0.jsonl", [record(k, "x" * n) for k, n in enumerate(sizes)])
    with closing(outside_of(link_of(tmp_path, "jsonl"))) as outside:
        position, found = None, []
        while not found or position is not None:
            page = outside.page(position)
            found.append([len(row.text or "") for row in page.rows])
            position = page.position

    assert found == [sizes[:2], sizes[2:3], sizes[3:4], sizes[4:], []]


def test_rows_before_the_place_of_damage_are_given_first(link: FileLink, tmp_path: Path):
    """A file that was cut off must not cost what is whole; the next page says what is wrong."""
    last = tmp_path / "source" / f"1.{link.kind}"
    last.write_bytes(last.read_bytes()[:-10])
    rows, position = list[OutsideRow](), None
    with closing(outside_of(link)) as outside:
        while position is not None or not rows:
            try:
                page = outside.page(position)
            except OutsideMismatchError as error:
                assert f"1.{link.kind}" in str(error)  # noqa: PT017 - the loop ends by it
                break
            rows += page.rows
            position = page.position
        else:
            pytest.fail("the damage was not told")
        told = outside.survey().findings[-1]

    assert [row.id for row in rows][:200] == [f"r{k}" for k in range(200)]
    assert told.blocks


def test_a_set_is_the_rows_of_the_files_with_other_vectors(outside: FileOutside, link: FileLink):
    """Text and metadata come along, in the files' order, and others read it at one moment."""
    move(outside)
    assert (outside.active(), current(link.folder)) == (HOME.fingerprint, None)

    told = outside.switch(NEW)

    assert outside.active() == NEW.fingerprint
    assert POINTER in told
    rows = read(link.folder)
    assert list(rows) == [f"r{k}" for k in range(N)]
    assert rows["r77"].document.text == "text 77"
    assert rows["r77"].document.metadata == {"year": 77}
    assert rows["r77"].vector is not None
    assert rows["r77"].vector.tolist() == [77, 1]


def test_rollback_is_the_files_themselves_and_cut_over_may_come_again(
    outside: FileOutside, link: FileLink
):
    move(outside)
    for _ in range(2):
        outside.switch(NEW)
        outside.switch(NEW)
        assert outside.active() == NEW.fingerprint
        outside.switch(HOME)
        outside.switch(HOME)
        assert outside.active() == HOME.fingerprint
    assert outside.page(None).active == HOME.fingerprint
    assert len(pulled(outside)) == N


def test_what_is_needed_no_more_is_removed_and_the_files_never(
    outside: FileOutside, link: FileLink
):
    move(outside)
    other = Space("v1:other", 2, "other")
    outside.prepare(other)
    outside.switch(NEW)

    (told,) = outside.drop_all_but([])
    assert "other" in told
    assert outside.drop_all_but([]) == []
    assert len(read(link.folder)) == N

    outside.switch(HOME)
    assert outside.drop_all_but([NEW.fingerprint]) == []
    (told,) = outside.drop_all_but([HOME.fingerprint])
    assert list(content(link.folder)) == ["home.json"]
    assert len(pulled(outside)) == N


def test_files_that_have_changed_are_read_once_more_and_others_get_a_new_set(
    outside: FileOutside, link: FileLink, tmp_path: Path
):
    """Until then nothing is done: it is looked at every second."""
    assert not outside.changes(10).marks
    assert outside.settle(everyone) is None
    move(outside)
    outside.switch(NEW)
    assert outside.settle(everyone) is None
    pointed = current(link.folder)

    write(tmp_path / "source" / f"3.{link.kind}", [record(1000)])
    changes = outside.changes(10)
    assert changes.marks
    assert changes.is_everything
    assert outside.changes(10).marks  # as long as they are not forgotten
    assert len(pulled(outside)) == N + 1
    outside.forget(changes)
    assert not outside.changes(10).marks
    pushed(outside, outgoing(range(1000, 1001)))

    assert POINTER in (outside.settle(everyone) or "")
    assert current(link.folder) != pointed
    row = read(link.folder)["r1000"]
    assert row.vector is not None
    assert row.vector.tolist() == [1000, 1]
    assert outside.settle(everyone) is None

    file = tmp_path / "source" / f"3.{link.kind}"
    aside = file.rename(tmp_path / "aside")  # no vector is pushed for that, nor for its way back
    for path, other, n in ((aside, file, N), (file, aside, N + 1)):
        assert outside.changes(10).marks
        assert outside.settle(everyone) is not None
        assert len(read(link.folder)) == n
        assert outside.settle(everyone) is None
        outside.forget(outside.changes(10))
        path.rename(other)


def test_what_reads_many_rows_can_be_interrupted_and_done_again(
    outside: FileOutside, link: FileLink
):
    """A server that ends waits for no millions of rows."""
    outside.prepare(NEW)
    pushed(outside, outgoing())

    def interrupting(ids: Sequence[str]) -> frozenset[str]:
        outside.interrupt()
        return everyone(ids)

    with pytest.raises(OutsideUnavailableError, match="interrupted"):
        outside.finish(NEW, interrupting)
    outside.finish(NEW, everyone)
    outside.switch(NEW)
    assert len(read(link.folder)) == N


def test_a_link_of_another_space_than_is_noted_is_refused(outside: FileOutside):
    """Vectors of two spaces would be taken for those of one."""
    move(outside)
    outside.follow(HOME)
    outside.switch(NEW)
    outside.follow(NEW)
    with pytest.raises(OutsideMismatchError, match=r"is of v1:new.* and not of foreign:ada-002"):
        outside.follow(HOME)


def test_a_row_without_a_vector_of_its_text_has_none_and_is_not_lost(
    outside: FileOutside, link: FileLink, tmp_path: Path
):
    """It was changed or came after the pull, was quarantined, or is no document any more."""
    rows = [record(k) for k in range(200)]
    rows[3] = record(3, "changed since")
    write(tmp_path / "source" / f"0.{link.kind}", [*rows, record(777)])
    outside.prepare(NEW)
    pushed(outside, [row for row in outgoing() if row.id not in ("r5", "r6")])

    outside.finish(NEW, lambda ids: frozenset(ids) - {"r7"})
    outside.switch(NEW)

    found = read(link.folder)
    assert len(found) == N + 1
    assert {id for id, row in found.items() if row.vector is None} == {
        "r3", "r5", "r6", "r7", "r777",
    }  # fmt: skip


def test_a_set_that_others_read_is_never_written_to(outside: FileOutside, link: FileLink):
    """What is pushed after a cut-over makes another set, to which the pointer is changed."""
    move(outside)
    outside.switch(NEW)
    before, first = content(link.folder), current(link.folder)

    pushed(outside, outgoing(range(10), "text {}"))  # the same again changes nothing
    outside.finish(NEW, everyone)
    assert content(link.folder) == before

    for turn in (5.0, 6.0):
        pointed = current(link.folder)
        row = outgoing(range(1))[0]
        changed = OutgoingRow(row.id, row.text, row.text_sha256, np.array([turn, turn], np.float32))
        pushed(outside, [changed])
        outside.finish(NEW, everyone)
        assert current(link.folder) == pointed
        outside.switch(NEW)
        assert current(link.folder) != pointed
        vector = read(link.folder)["r0"].vector
        assert vector is not None
        assert vector.tolist() == [turn, turn]
    assert current(link.folder) == first


def test_what_was_left_in_its_midst_goes_on_to_the_same_bytes(
    outside: FileOutside, link: FileLink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """At whichever write: kill -9 leaves what an error leaves, and a ".tmp" besides."""
    monkeypatch.setattr(sets, "PART_ROWS", 70)
    with closing(outside_of(link.model_copy(update={"folder": tmp_path / "quiet"}))) as quiet:
        quiet.follow(HOME)
        move(quiet)
    quiet_content = content(tmp_path / "quiet")
    assert sum("part-" in name for name in quiet_content) == 5
    move_on: list[Callable[[], None]] = [
        lambda: outside.prepare(NEW),
        lambda: pushed(outside, outgoing()),
        lambda: outside.finish(NEW, everyone),
    ]
    publish, n_calls = parts.publish, 0

    def killed(written: Path, target: Path) -> None:
        nonlocal n_calls
        n_calls += 1
        if n_calls % 2:
            raise KeyboardInterrupt
        publish(written, target)

    monkeypatch.setattr(parts, "publish", killed)
    n_stops = 0
    for step in move_on:
        while True:
            try:
                step()
                break
            except KeyboardInterrupt:
                n_stops += 1
    assert n_stops == 5
    assert content(link.folder) == quiet_content
    written = [path.stat().st_mtime_ns for path in link.folder.rglob("part-*")]
    outside.finish(NEW, everyone)
    assert [path.stat().st_mtime_ns for path in link.folder.rglob("part-*")] == written


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_whole_parts_alone_and_is_gone_on_from(
    outside: FileOutside, link: FileLink, monkeypatch: pytest.MonkeyPatch, code: int
):
    """Nothing half is left that takes room, and the reason says what to do."""
    monkeypatch.setattr(sets, "PART_ROWS", 70)
    outside.prepare(NEW)
    pushed(outside, outgoing())
    sync, n_parts = parts.publish, 0

    def full(written: Path, target: Path) -> None:
        nonlocal n_parts
        n_parts += 1
        if n_parts == 3:
            raise OSError(code, os.strerror(code))
        sync(written, target)

    monkeypatch.setattr(parts, "publish", full)
    with pytest.raises(OutsideUnavailableError, match=r"disk filled up while .*part-00002"):
        outside.finish(NEW, everyone)
    names = sorted(path.name for path in link.folder.rglob("part-*"))
    assert names == [f"part-{n:05d}.{link.kind}" for n in range(2)]
    with pytest.raises(OutsideMismatchError, match="has no whole set"):
        outside.switch(NEW)

    outside.finish(NEW, everyone)
    outside.switch(NEW)
    assert len(read(link.folder)) == N


def test_vectors_that_were_pushed_outlive_the_process(link: FileLink):
    with closing(outside_of(link)) as outside:
        outside.prepare(NEW)
        pushed(outside, outgoing())
    with closing(outside_of(link)) as outside:
        outside.finish(NEW, everyone)
        outside.switch(NEW)
    assert all(row.vector is not None for row in read(link.folder).values())


def test_a_folder_that_cannot_be_made_blocks_and_says_so(link: FileLink, tmp_path: Path):
    (tmp_path / "file").touch()
    told = link.model_copy(update={"folder": tmp_path / "file" / "moved"})
    with closing(outside_of(told)) as outside:
        assert any(finding.blocks for finding in outside.survey().findings)
        with pytest.raises(OutsideMismatchError, match="cannot write"):
            outside.prepare(NEW)


def test_a_set_that_is_not_whole_is_none_to_read(outside: FileOutside, link: FileLink):
    """An import of it would lack rows, and nobody would know."""
    outside.prepare(NEW)
    pushed(outside, outgoing())
    with pytest.raises(OutsideMismatchError, match="has no whole set"):
        outside.switch(NEW)
    outside.finish(NEW, everyone)
    (manifest,) = link.folder.rglob("manifest.json")
    manifest.unlink()
    with pytest.raises(OutsideMismatchError, match="is not whole"):
        files_of(str(manifest.parent))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for little."""
    with small_disk(tmp_path / "disk", "128k") as folder:
        yield folder


def test_a_disk_that_is_full_in_earnest_is_told_and_gone_on_from(link: FileLink, disk: Path):
    """While vectors are kept and while parts are written: room is made, and nothing is lost."""

    def until_there_is_room(step: Callable[[], None]) -> None:
        with filled(disk, 8192), pytest.raises(OutsideUnavailableError, match="full"):
            step()
        assert not list(disk.rglob("*.tmp"))
        step()

    with closing(outside_of(link.model_copy(update={"folder": disk / "moved"}))) as outside:
        outside.follow(HOME)
        outside.prepare(NEW)
        outside.push(NEW, outgoing(range(1)))
        until_there_is_room(lambda: pushed(outside, outgoing()))
        until_there_is_room(lambda: outside.finish(NEW, everyone))
        outside.switch(NEW)

    found = read(disk / "moved")
    assert list(found) == [f"r{k}" for k in range(N)]
    assert all(row.vector is not None for row in found.values())


def test_a_folder_has_one_server_and_another_reads_all_anew(
    outside: FileOutside, link: FileLink, tmp_path: Path
):
    """Both would write sets, and neither would see that the other has noted the files."""
    other = FileOutside(link, ServerIdentity(tmp_path / "other"))
    with closing(other):
        assert outside.claim([HOME.fingerprint])
        outside.prepare(NEW)
        with pytest.raises(OutsideUnavailableError, match=f"followed by .*{tmp_path}/data"):
            other.claim([HOME.fingerprint])
        outside.close()
        assert other.drop_all_but([]) == ()
        with pytest.raises(OutsideMismatchError, match="another server has moved it"):
            other.claim([NEW.fingerprint])
        assert not other.claim([HOME.fingerprint])
        assert not other.claim([HOME.fingerprint])
        assert other.claim([HOME.fingerprint], begins_anew=True)
        with pytest.raises(OutsideUnavailableError, match=f"followed by .*{tmp_path}/other"):
            outside.follow(HOME)
    assert not outside.claim([HOME.fingerprint])


@pytest.mark.parametrize("name", ["../source/0.jsonl", "/etc/passwd", ".", "link/x.jsonl", 7, None])
@pytest.mark.parametrize("file", ["current.json", "manifest.json"])
def test_what_a_folder_names_lies_in_it(tmp_path: Path, file: str, name: object):
    """A folder that was fetched from elsewhere could have any file of this machine imported."""
    folder = tmp_path / "fetched"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    content = {"set": name} if file == "current.json" else {"parts": [name]}
    (folder / file).write_bytes(orjson.dumps(content))
    with pytest.raises(OutsideMismatchError, match=f"{file} names .* not lie in its folder"):
        files_of(str(folder))
