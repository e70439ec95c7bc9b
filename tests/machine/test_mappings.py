"""Pages of a file that another part of the process has mapped."""

import mmap
import re
import sys
from pathlib import Path

import pytest

from plimsoll.machine import mappings
from plimsoll.machine.mappings import drop_pages

PAGE = mmap.PAGESIZE
linux_only = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux lists a process's mappings"
)


def n_pages(path: Path) -> int:
    """How many pages of a file this process has in its page tables: proc_pid_smaps(5)."""
    entry = Path("/proc/self/smaps").read_text().partition(f" {path.resolve()}\n")[2]
    found = re.search(r"^Rss:\s+(\d+) kB$", entry, re.MULTILINE)
    assert found is not None
    return (int(found[1]) << 10) // PAGE


@linux_only
def test_whole_pages_of_a_range_are_dropped_and_read_the_same_again(tmp_path: Path):
    """An edge that holds a neighbour's bytes stays: it may be in use just now."""
    path = tmp_path / "a file with spaces"
    content = bytes(range(256)) * (PAGE // 256) * 8
    path.write_bytes(content)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        for start, stop, left in (
            (10, PAGE - 10, 8),
            (PAGE + 1, 4 * PAGE + 1, 6),
            (PAGE, 9 * PAGE, 1),
        ):
            assert mapped[:] == content  # every page is there now
            drop_pages(path.resolve(), start, stop)
            assert n_pages(path) == left
        assert mapped[:] == content


@linux_only
def test_a_mapping_that_begins_inside_the_file_is_found_by_its_offset(tmp_path: Path):
    """A library maps blob by blob."""
    path = tmp_path / "blobs"
    path.write_bytes(bytes(8 * PAGE))
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 2 * PAGE, prot=mmap.PROT_READ, offset=4 * PAGE) as mapped,
    ):
        assert mapped[:] == bytes(2 * PAGE)
        drop_pages(path.resolve(), 0, 4 * PAGE)
        assert n_pages(path) == 2
        drop_pages(path.resolve(), 0, 5 * PAGE)
        assert n_pages(path) == 1


def test_what_was_listed_stands_until_its_pages_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its addresses would belong to other memory, which would be zeros: other threads unmap too."""
    maps = tmp_path / "maps"
    maps.write_text("1000-3000 r--p 00000000 fe:00 7   /packed.bin\n")
    seen: list[bool] = []

    class Libc:
        def madvise(self, *given: object) -> None:
            seen.append(mappings._dropping.locked())

    monkeypatch.setattr(mappings, "_libc", Libc)

    drop_pages(Path("/packed.bin"), 0, 2 * PAGE, maps=maps)

    assert seen == [True]
    with mappings.unmapping():
        assert mappings._dropping.locked()


@pytest.mark.parametrize(
    "listed", [None, "1000-3000 r--p 00000000 fe:00 7   /data/other/packed.bin\n"]
)
def test_nothing_is_dropped_of_what_is_not_listed(
    tmp_path: Path, listed: str | None, monkeypatch: pytest.MonkeyPatch
):
    """macOS lists no mappings; and a name that ends alike is another file."""
    maps = tmp_path / "maps"
    if listed is not None:
        maps.write_text(listed)
    monkeypatch.setattr(mappings, "_libc", lambda: pytest.fail("dropped"))

    drop_pages(Path("/other/packed.bin"), 0, 2 * PAGE, maps=maps)
