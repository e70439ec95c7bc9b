"""The page of a migration: whole, safe, readable without colours and without a network."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from plimsoll.charts.page import STYLE as PAGE_STYLE
from plimsoll.cli.migration_page import STYLE, migration_page
from tests.bench.test_load import colours, luminance
from tests.cli.reports import HOSTILE, change, report

SVG = "{http://www.w3.org/2000/svg}"


class Text(HTMLParser):
    """What a reader sees, by the element that it stands in."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def drawings(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page)]


def test_the_page_has_everything_that_the_report_has():
    text = Text(migration_page(report())).text
    for told in (
        "✕ Verdict: no-go",
        "judged_queries: nDCG@10 0.3891, loses 0.0157 against 0.4048",
        "Warning: rollback: what is written",
        "0.4048", "0.3891", "0.3529", "-0.0157",
        "too long",
        "38% of the budget at most",
        "the webhook answered 500",
        "opened",
        "Live searches, compared", "83.4%", "3, the last with space_mismatch",
        "foreign:ada-002",
        "dropped, forced: its retention is 0.713",
        "nDCG@10 among them 0.4712 in place of 0.5121",
    ):  # fmt: skip
        assert told in text, told


def test_what_clients_wrote_is_text_and_no_markup():
    page = migration_page(report())
    read = Text(page)
    assert "script" not in read.tags
    assert read.text.count(HOSTILE) == 5


def test_the_page_loads_nothing():
    """It is mailed, and opened years later."""
    page = migration_page(report())
    assert "default-src 'none'" in page
    outside = re.sub(r'xmlns="http://www.w3.org/2000/svg"', "", page)
    assert not re.search(r"https?:|url\(|<link|<img|<script|@import", outside)


def test_bars_are_as_long_as_their_figures():
    """Old, new and BM25 of one figure on one scale, from zero."""
    (bars, *_) = drawings(migration_page(report()))
    widths = [float(bar.attrib["width"]) for bar in bars.findall(f"{SVG}rect")][:3]
    assert [width / widths[0] for width in widths] == pytest.approx(
        [1, 0.3891 / 0.4048, 0.3529 / 0.4048], abs=1e-3
    )


def test_the_rate_is_what_was_embedded_between_two_moments():
    """A time in which nothing went on lies on the axis."""
    _, done, rate, _ = drawings(migration_page(report()))
    (path,) = (line.attrib["d"] for line in rate.findall(f"{SVG}path"))
    heights = [float(y) for _, y in re.findall(r"[ML]([\d.]+),([\d.]+)", path)]
    axis = max(heights)
    per_s = [(axis - height) for height in heights]
    rates = [5, 7, 0, 0, 7, 9, 5, 5.8]
    assert [value / per_s[0] for value in per_s] == pytest.approx([r / 5 for r in rates], abs=0.02)
    (path,) = (line.attrib["d"] for line in done.findall(f"{SVG}path"))
    places = [float(y) for _, y in re.findall(r"[ML]([\d.]+),([\d.]+)", path)]
    assert places == sorted(places, reverse=True)


def test_the_mean_rate_is_that_of_the_time_in_which_it_ran():
    """A night between the run and a second verdict is no slowness."""
    assert "1 min 20 s of embedding, 4.8 documents a second" in Text(migration_page(report())).text
    changes = [
        change("2026-01-01T10:01:00Z", "planned", "running", ""),
        change("2026-01-01T10:01:20Z", "running", "paused", ""),
        change("2026-01-01T10:02:00Z", "paused", "running", ""),
    ]
    told = Text(migration_page(report(changes=changes))).text
    assert "40 s of embedding, 9.7 documents a second in the mean" in told


@pytest.mark.parametrize(
    "changed",
    [
        {"verdict": None, "hooks": [], "quarantine": [], "quarantined": 0},
        {"failure": "hook 'window' stopped it: closed", "state": "failed"},
    ],
)
def test_a_migration_without_a_verdict_has_a_page_too(changed: dict):
    text = Text(migration_page(report(**changed))).text
    assert changed.get("failure", "Verdict: none yet") in text


def test_a_migration_that_was_too_short_is_not_drawn():
    found = report()
    text = Text(migration_page({**found, "progress": found["progress"][:1]})).text
    assert "too short to be drawn" in text


@pytest.mark.parametrize(
    ("span_s", "label"), [(500, "400 s"), (5000, "80 min"), (80_000, "20 h"), (1, "1 s")]
)
def test_the_axis_is_in_units_that_are_read(span_s: int, label: str):
    found = report()
    first, *_, last = found["progress"]
    later = {**last, "second": first["second"] + span_s}
    page = migration_page({**found, "progress": [first, later]})
    assert f">{label}</text>" in page


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_text_and_marks_stand_out_from_the_page(mode: str):
    """Text by 4.5 to 1, graphics by 3 to 1 (WCAG)."""
    shades = colours(PAGE_STYLE, mode) | colours(STYLE, mode)
    page = luminance(shades["page"])

    def contrast(name: str) -> float:
        low, high = sorted((page, luminance(shades[name])))
        return (high + 0.05) / (low + 0.05)

    assert [n for n in ("ink", "faint", "good", "bad", "open") if contrast(n) < 4.5] == []
    assert [n for n in ("old", "new", "bm25", "documents", "rate") if contrast(n) < 3] == []
