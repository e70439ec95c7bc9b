"""The registry: what is in it, and when it comes there."""

import pytest
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY

from plimsoll.telemetry.metrics import Telemetry, media_type


def test_every_metric_on_the_page_stands_in_the_table():
    """A family that the table leaves out would be documented nowhere."""
    telemetry = Telemetry("0")

    on_page = {
        line.split()[2]
        for line in telemetry.render().decode().splitlines()
        if line.startswith("# TYPE plimsoll_")
    }
    assert on_page == {metric.name for metric in telemetry.metrics()}


def test_two_registries_share_nothing():
    """Tests and embedded servers make several in one process, and importing must register none."""
    one, other = Telemetry("0"), Telemetry("0")
    one.engine.queued(7)

    assert "\nplimsoll_queue_tokens 7.0\n" in one.render().decode()
    assert "\nplimsoll_queue_tokens 0.0\n" in other.render().decode()
    assert not [family for family in REGISTRY.collect() if family.name.startswith("plimsoll")]


@pytest.mark.parametrize(
    ("accept", "begin"),
    [
        ("text/plain; version=0.0.4", "text/plain; version=0.0.4"),
        ("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", "text/plain; version=0.0.4"),
        ("text/plain; charset=utf-8; version=0.0.4", "text/plain; version=0.0.4"),
        ("text/plain", CONTENT_TYPE_LATEST),
        (
            "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5",
            "text/plain; version=0.0.4",
        ),
        ("text/plain;version=1.0.0,text/plain;version=0.0.4;q=0.2", "text/plain; version=1.0.0"),
        ("application/openmetrics-text;version=1.0.0", CONTENT_TYPE_LATEST),
        ("*/*", CONTENT_TYPE_LATEST),
        ("", CONTENT_TYPE_LATEST),
        (";,=,text/plain;version=x", CONTENT_TYPE_LATEST),
    ],
)
def test_the_page_is_of_the_type_that_a_scrape_asks_for(accept: str, begin: str):
    """Readers that know 0.0.4 alone, such as some agents, refuse a page of another type."""
    assert media_type(accept).startswith(begin)
