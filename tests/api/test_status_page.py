"""The status page as a browser fetches it, and the numbers it asks for.

What the page does with them is seen in a real browser: tests/acceptance/test_status_page.py.
"""

import re
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from plimsoll.api.operations.status import Alerts
from plimsoll.api.pages import __file__ as pages_file
from plimsoll.policy.lines import STEP_NAMES
from plimsoll.serving.control_loop import HISTORY_S
from tests.api.edge.bodies import JSON
from tests.fakes import FakeClock, FakeOpener, FakeServer
from tests.grafana_files import RULES, load_yaml
from tests.running_server import ROOT

FOLDER = Path(pages_file).parent
PARTS = sorted(path.name for path in FOLDER.glob("*.*") if path.suffix != ".py")
SECRET = "confidential"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def opener() -> FakeOpener:
    return FakeOpener()


@pytest.fixture
def client(opener: FakeOpener, clock: FakeClock) -> Iterator[TestClient]:
    server = FakeServer(opener, clock=clock)
    with TestClient(server.app) as client:
        client.control_loop = server.core.control_loop
        yield client
    server.close()


# --- the page -------------------------------------------------------------------------------


def test_the_page_answers_get_and_head_alike(client: TestClient):
    """Some clients ask with HEAD whether anybody is there before they do anything else."""
    page, head = client.get("/"), client.head("/")

    assert page.status_code == head.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.text.startswith("<!doctype html>")
    differing = {"x-request-id"}
    assert {k: v for k, v in head.headers.items() if k not in differing} == {
        k: v for k, v in page.headers.items() if k not in differing
    }


def test_every_file_that_the_page_names_is_served_and_none_is_left_over(client: TestClient):
    """A name that was mistyped shows only in a browser; a file that nobody names is dead."""
    page = client.get("/").text
    named = set(re.findall(r'(?:src|href)="pages/([^"]+)"', page))
    for name in [name for name in named if name.endswith(".js")]:
        named |= set(re.findall(r'from "\./([^"]+)"', client.get(f"/pages/{name}").text))

    assert named | {"status.html"} == set(PARTS)
    types = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    for name in named:
        part = client.get(f"/pages/{name}")
        assert part.status_code == 200
        assert part.headers["content-type"].split(";")[0] == types[Path(name).suffix]


@pytest.mark.parametrize("path", ["/", *(f"/pages/{name}" for name in PARTS)])
def test_nothing_comes_from_elsewhere_and_no_script_stands_in_the_page(
    client: TestClient, path: str
):
    """It works without a network, and a text that gets into it cannot run."""
    part = client.get(path)

    policy = dict(
        directive.split(" ", 1) for directive in part.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert set(policy.values()) == {"'none'", "'self'"}
    assert part.headers["x-content-type-options"] == "nosniff"
    assert part.headers["cache-control"] == "no-cache"
    named = part.text.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"(https?:)?//\w", re.sub(r"^\s*// .*$", "", named, flags=re.MULTILINE))
    assert not re.search(r"<script(?![^>]*\ssrc=)|\son\w+=|\sstyle=|javascript:", part.text)
    # What servers and clients say becomes text, never markup.
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", named)


@pytest.mark.parametrize("name", ["__init__.py", "..%2Fstatus.py", "..%2F..%2Fmain.py", "x.html"])
def test_nothing_but_the_pages_own_files_is_served(client: TestClient, name: str):
    """The folder holds code as well."""
    assert client.get(f"/pages/{name}").status_code == 404


def test_the_wheel_takes_the_pages_files_along():
    """Left out, the page would be there in a checkout and missing wherever it is installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["plimsoll.api.pages"]

    assert PARTS
    assert [name for name in PARTS if not any(fnmatch(name, pattern) for pattern in patterns)] == []


# --- its numbers ----------------------------------------------------------------------------


def test_before_anything_has_happened_there_is_nothing_and_it_says_so(client: TestClient):
    """A page that is opened in the first second must not fail."""
    status = client.get("/status")

    assert status.headers["cache-control"] == "no-store"
    answer = status.json()
    assert [rung["name"] for rung in answer.pop("ladder")] == list(STEP_NAMES)
    assert answer.pop("lines") == {"save": 0.70, "drop_pages": 0.75, "breaker": 0.90}
    assert answer.pop("alerts") == {"failed_ratio": 0.01, "refused_ratio": 0.05, "slow_s": 10.0}
    assert answer == {
        "history": {
            "seconds_ago": [],
            "used_bytes": [],
            "working_set_bytes": [],
            "predicted_bytes": [],
            "tokens_per_s": [],
            "ladder_step": [],
        },
        "latency": {
            "window_s": 60.0,
            "n_replies": 0,
            "p50_s": None,
            "p95_s": None,
            "p99_s": None,
        },
        "traffic": {
            "period_s": 5.0,
            "sources": [
                {
                    "route": "all",
                    "model": None,
                    "requests": [0] * 60,
                    "errors": [0] * 60,
                    "refused": [0] * 60,
                    "failed": [0] * 60,
                    "p95_s": [None] * 60,
                }
            ],
        },
        "requests": {"dense": 0, "sparse": 0, "error": 0},
        "errors": [],
    }


def test_the_page_is_alarmed_where_the_alerts_are():
    """A rule that is changed alone would leave the page green while Alertmanager calls."""
    rules = {
        rule["alert"]: rule["expr"]
        for group in load_yaml(RULES)["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }
    lines = Alerts()
    for alert, line in (
        ("PlimsollErrors", lines.failed_ratio),
        ("PlimsollDegraded", lines.refused_ratio),
        ("PlimsollSlow", lines.slow_s),
    ):
        assert float(rules[alert].rpartition(">")[2]) == line, alert


def test_the_history_is_of_the_last_five_minutes_a_look_a_second(
    client: TestClient, clock: FakeClock
):
    """After an alarm an operator sees what led to it; and it stays as small as it is."""
    for _ in range(round(HISTORY_S) + 5):
        clock.now_s += 1
        client.portal.call(client.control_loop.tick)

    history = client.get("/status").json()["history"]
    memory = client.get("/health").json()["memory"]

    assert history["seconds_ago"] == [float(s) for s in reversed(range(round(HISTORY_S)))]
    assert {len(column) for column in history.values()} == {round(HISTORY_S)}
    assert history["used_bytes"][-1] == pytest.approx(memory["used_bytes"], rel=0.2)
    assert history["predicted_bytes"][-1] >= history["used_bytes"][-1]
    assert set(history["ladder_step"]) <= {0, 1, 2}


def test_replies_are_counted_by_what_they_were(client: TestClient):
    """Word replies and errors are what an operator comes to look for."""
    client.post("/embed", json={"input": "a ship"})
    client.post("/v1/embeddings", json={"input": "a ship"})
    client.post("/embed", json={"input": "a ship", "encoder": "bm25"})
    client.post("/embed", json={"input": 5})
    client.get("/no/such/route")
    for path in ("/", "/health", "/metrics"):
        client.get(path)

    status = client.get("/status").json()

    assert status["requests"] == {"dense": 2, "sparse": 1, "error": 2}
    assert status["latency"]["n_replies"] == 3
    assert 0 < status["latency"]["p50_s"] <= status["latency"]["p99_s"]


def test_errors_are_remembered_without_a_word_of_their_requests(client: TestClient):
    """The page is for everybody who may open it; what clients send is not."""
    client.post("/embed", json={"input": "a ship", SECRET: 1})
    client.post("/embed", json={"input": [SECRET], "input_type": SECRET})
    client.post("/embed", json={"input": "a ship", "model": SECRET})
    client.post("/embed", content=f'{{"{SECRET}'.encode(), headers=JSON)
    client.post("/embed", content=b"{}", headers={"content-type": SECRET})
    client.get("/health", headers={"host": SECRET})
    client.get("/health", headers={"origin": SECRET})
    client.post("/v1/embeddings", json={"input": SECRET * 100, "dimensions": 99})
    client.get(f"/{SECRET}?{SECRET}={SECRET}")
    client.delete("/embed")

    status = client.get("/status")

    assert SECRET not in status.text
    errors = status.json()["errors"]
    assert [(error["status"], error["code"], error["n_times"]) for error in errors] == [
        (405, "http_405", 1),
        (404, "http_404", 1),
        (400, "invalid_request", 4),
        (403, "origin_not_allowed", 1),
        (421, "host_not_allowed", 1),
        (415, "unsupported_media_type", 1),
        (404, "model_not_found", 1),
    ]
    assert all(error["request_id"] for error in errors)
    assert all(error["message"] and error["at_s"] > 1e9 for error in errors)


def test_an_error_that_nobody_foresaw_shows_as_one_that_the_log_explains(
    client: TestClient, opener: FakeOpener
):
    """Its own words may hold anything."""
    opener.next_model.error = RuntimeError(SECRET)

    client.post("/embed", json={"input": "a ship"})

    [error] = client.get("/status").json()["errors"]
    assert (error["status"], error["code"]) == (500, "internal_error")
    assert "log" in error["message"]
    assert SECRET not in error["message"]
