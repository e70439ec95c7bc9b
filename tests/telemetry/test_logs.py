"""The form of log lines."""

import io
import json
import logging
import sys
from collections.abc import Callable, Iterator
from datetime import datetime

import pytest

from plimsoll.telemetry.current_request import CurrentRequest, serving, together
from plimsoll.telemetry.logs import JSONFormatter, configure

Written = Callable[[str, str], io.StringIO]

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


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


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Written:
    """Configures, and says where lines go."""

    def configured(level: str, style: str) -> io.StringIO:
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        configure(level, style)
        return stream

    return configured


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


@pytest.mark.parametrize("client", ["httpx", "httpx2", "urllib3.connectionpool"])
def test_an_http_client_does_not_repeat_our_lines(written: Written, client: str):
    """A line a request is enough, and its addresses may hold signatures."""
    stream = written("debug", "json")

    logging.getLogger(client).info("HTTP Request: GET http://…")

    assert stream.getvalue() == ""


def test_a_line_says_which_request_it_was_written_for(written: Written):
    """The code that writes it need not know of requests."""
    stream = written("info", "json")

    with serving(CurrentRequest("outer")):
        with serving(CurrentRequest("inner", TRACE_ID)):
            logging.getLogger("any").info("within")
        logging.getLogger("any").info("between")
    logging.getLogger("any").info("outside")

    within, between, outside = map(json.loads, stream.getvalue().splitlines())
    assert (within["request_id"], within["trace_id"]) == ("inner", TRACE_ID)
    assert (between["request_id"], between.get("trace_id")) == ("outer", None)
    assert "request_id" not in outside


def test_a_line_for_several_requests_names_each_once(written: Written):
    """A search for any of them must find it."""
    stream = written("info", "json")
    one, other = CurrentRequest("one", TRACE_ID), CurrentRequest("other")

    with serving(together([one, None, other, one])):
        logging.getLogger("any").info("for both")
    with serving(together([None])):
        logging.getLogger("any").info("for none")

    both, none = map(json.loads, stream.getvalue().splitlines())
    assert both["request_id"] == "one,other"
    assert "request_id" not in none


def test_fields_stand_beside_the_message_in_json(written: Written):
    """None of them has to be cut out of words; one without a value keeps its place."""
    stream = written("info", "json")

    fields = {"status": 200, "duration_ms": 1.5, "degraded": None}
    logging.getLogger("any").info("done", extra={"fields": fields})

    assert json.loads(stream.getvalue()).items() >= fields.items()


def test_a_line_for_people_ends_with_the_request(written: Written):
    """One line, what happened first; fields are for machines."""
    stream = written("info", "text")

    with serving(CurrentRequest("mine", TRACE_ID)):
        logging.getLogger("any").info("done", extra={"fields": {"status": 200}})

    (line,) = stream.getvalue().splitlines()
    assert line.endswith("INFO    done [mine]")


def test_ids_for_people_are_short(written: Written):
    """A line of forty ids of 32 digits is no line for people; the beginning finds the rest."""
    stream = written("info", "text")

    with serving(CurrentRequest(",".join(f"{n}23456789abcdef" for n in range(5)))):
        logging.getLogger("any").info("done")

    assert stream.getvalue().endswith("done [02345678, 12345678, 22345678 and 2 more]\n")


def test_a_traceback_for_people_stands_below_its_line(written: Written):
    """The request's id belongs to the line that says what failed."""
    stream = written("info", "text")

    with serving(CurrentRequest("mine")):
        try:
            raise ZeroDivisionError("by zero")
        except ZeroDivisionError:
            logging.getLogger("any").exception("failed\n")

    first, second, *_, last = stream.getvalue().splitlines()
    assert first.endswith("failed [mine]")
    assert second.startswith("Traceback")
    assert last == "ZeroDivisionError: by zero"


def test_a_message_cannot_forge_a_line_for_people(written: Written):
    """A path may hold anything: %0A in one must not begin a line, nor clear a screen."""
    stream = written("info", "text")

    forged = "/ü\n12:00:00 INFO    forged\r\x1b[2J\u2028\x85"
    logging.getLogger("any").info("GET %s 404", forged)

    (line,) = stream.getvalue().splitlines()
    assert line.endswith(r"GET /ü\n12:00:00 INFO    forged\r\x1b[2J\u2028\x85 404")
