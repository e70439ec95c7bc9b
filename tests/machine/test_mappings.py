"""Pages of a file that another part of the process has mapped."""

import mmap
import sys
from pathlib import Path

import pytest

from plimsoll.machine.mappings import drop_pages

PAGE = mmap.PAGESIZE


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists a process's mappings")
def test_whole_pages_of_a_range_are_dropped_and_read_the_same_again(tmp_path: Path):
    """An edge that holds a neighbour's bytes stays: it may be in use just now."""
    path = tmp_path / "a file with spaces"
    content = bytes(range(256)) * (PAGE // 256) * 8
    path.write_bytes(content)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[:] == content  # every page is there now

        assert drop_pages(path.resolve(), PAGE + 1, 4 * PAGE + 1) == 2 * PAGE
        assert drop_pages(path.resolve(), PAGE, 9 * PAGE) == 7 * PAGE
        assert drop_pages(path.resolve(), 10, PAGE - 10) == 0
        assert mapped[:] == content


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists a process's mappings")
def test_a_mapping_that_begins_inside_the_file_is_found_by_its_offset(tmp_path: Path):
    """A library maps blob by blob."""
    path = tmp_path / "blobs"
    path.write_bytes(bytes(8 * PAGE))
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 2 * PAGE, prot=mmap.PROT_READ, offset=4 * PAGE),
    ):
        assert drop_pages(path.resolve(), 0, 5 * PAGE) == PAGE
        assert drop_pages(path.resolve(), 0, 4 * PAGE) == 0


def test_nothing_is_dropped_where_mappings_are_not_listed(tmp_path: Path):
    """Then the kernel alone takes pages back."""
    assert drop_pages(tmp_path / "any", 0, PAGE, maps=tmp_path / "absent") == 0


def test_other_files_are_left_alone(tmp_path: Path):
    """A name that ends alike is another file; a removed one keeps its mapping."""
    maps = tmp_path / "maps"
    maps.write_text("1000-3000 r--p 00000000 fe:00 7   /data/other/packed.bin\n")
    assert drop_pages(Path("/other/packed.bin"), 0, 2 * PAGE, maps=maps) == 0
