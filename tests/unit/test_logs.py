"""The form of log lines."""

import io
import json
import logging
import sys
from collections.abc import Iterator
from datetime import datetime

import pytest

from app.logs import JSONFormatter, configure


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def root_logger(monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.Logger]:
    """The root logger without pytest's handlers, and everything as before afterwards."""
    root, client = logging.getLogger(), logging.getLogger("httpx")
    monkeypatch.setattr(root, "handlers", [])
    levels = root.level, client.level
    yield root
    root.setLevel(levels[0])
    client.setLevel(levels[1])


def record(message: str, *arguments: object, **extra: object) -> logging.LogRecord:
    return logging.LogRecord("plimsoll", logging.WARNING, "x.py", 1, message, arguments, **extra)


def test_a_json_line_has_time_level_logger_and_message():
    """Machines search by them."""
    line = JSONFormatter().format(record("%d texts of %s", 3, "höchster Güte", exc_info=None))

    fields = json.loads(line)
    assert set(fields) == {"time", "level", "logger", "message"}
    assert fields["message"] == "3 texts of höchster Güte"
    assert (fields["level"], fields["logger"]) == ("warning", "plimsoll")
    assert datetime.fromisoformat(fields["time"]).utcoffset().total_seconds() == 0
    assert "höchster" in line  # not escaped: people read these lines too


def test_a_message_of_many_lines_stays_one_json_line():
    """A line feed in a path or a message must not forge a second entry."""
    line = JSONFormatter().format(record('first\nsecond "quoted"', exc_info=None))

    assert "\n" not in line
    assert json.loads(line)["message"] == 'first\nsecond "quoted"'


def test_a_json_line_carries_the_traceback():
    """In the same object, so that it is not torn from its message."""
    try:
        raise ZeroDivisionError("by zero")
    except ZeroDivisionError:
        line = JSONFormatter().format(record("failed", exc_info=sys.exc_info()))

    assert "ZeroDivisionError: by zero" in json.loads(line)["exception"]
    assert "\n" not in line


@pytest.mark.parametrize(
    ("style", "stream", "is_json"),
    [
        ("auto", Terminal(), False),
        ("auto", io.StringIO(), True),
        ("json", Terminal(), True),
        ("text", io.StringIO(), False),
    ],
)
def test_people_get_text_and_machines_get_json(
    monkeypatch: pytest.MonkeyPatch, style: str, stream: io.StringIO, is_json: bool
):
    """Unless the operator says otherwise."""
    monkeypatch.setattr(sys, "stderr", stream)
    configure("info", style)

    logging.getLogger("plimsoll").info("hello %s", "ship")

    line = stream.getvalue()
    assert line.startswith("{") is is_json
    assert "hello ship" in line
    assert line.count("\n") == 1


def test_the_level_is_the_least_severe_that_is_written(monkeypatch: pytest.MonkeyPatch):
    """Also of other libraries' loggers."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    configure("warning", "json")

    logging.getLogger("plimsoll").info("quiet")
    logging.getLogger("uvicorn.error").warning("loud")

    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["loud"]


def test_configuring_twice_writes_each_line_once(monkeypatch: pytest.MonkeyPatch):
    """Some commands load their settings twice."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    configure("info", "json")
    configure("info", "text")

    logging.getLogger("plimsoll").info("once")

    assert stream.getvalue().count("once") == 1


def test_the_http_client_does_not_repeat_our_lines(monkeypatch: pytest.MonkeyPatch):
    """A line a request is enough, and its addresses may hold signatures."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    configure("debug", "json")

    logging.getLogger("httpx").info("HTTP Request: GET http://…")

    assert stream.getvalue() == ""
