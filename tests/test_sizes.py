"""Sizes as people write them."""

import pytest

from plimsoll.sizes import Size, rounded


@pytest.mark.parametrize(
    ("written", "n_bytes"),
    [
        ("512M", 512 << 20),
        ("512m", 512 << 20),
        ("512MiB", 512 << 20),
        ("512Mi", 512 << 20),
        ("512 MB", 512 << 20),
        ("1.5G", 3 << 29),
        ("2T", 2 << 40),
        ("1000", 1000),
        ("1000B", 1000),
        (4096, 4096),
    ],
)
def test_a_size_is_read_as_docker_and_kubernetes_write_it(written, n_bytes):
    """A limit is copied from a compose file or a manifest; units are 1024-fold there."""
    assert Size.parse(written) == n_bytes


@pytest.mark.parametrize(
    "written", ["", "M", "-1M", "1e9", "٤M", "1,5G", "5 apples", 1.5, True, None]
)
def test_what_is_no_size_is_refused(written):
    """A guess would be a limit that was never set."""
    with pytest.raises(ValueError, match="write a size"):
        Size.parse(written)


def test_a_size_past_every_machine_is_refused():
    """It is a slip of the unit."""
    with pytest.raises(ValueError, match="more than 1024T"):
        Size.parse("2000000G")


@pytest.mark.parametrize("text", ["20M", "1536M", "1G", "1000", "0", "17K"])
def test_a_size_is_written_in_the_largest_unit_that_keeps_it_whole(text):
    """So that what `plimsoll config` shows can be written back."""
    assert str(Size.parse(text)) == text


@pytest.mark.parametrize(
    ("n_bytes", "written"),
    [
        (0, "0 bytes"),
        (1000, "1000 bytes"),
        (2048, "2.0K"),
        (656_000, "641K"),
        (1_500_000, "1.4M"),
        (90_868_376, "87M"),
        (25_276_514_304, "24G"),
    ],
)
def test_a_size_for_people_is_short_and_never_nothing(n_bytes, written):
    """0M for what takes half a megabyte is wrong, and 24684096K cannot be read."""
    assert rounded(n_bytes) == written
