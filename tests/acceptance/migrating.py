"""A migration of a running server, as a client sees it."""

from collections.abc import Iterable, Mapping
from time import monotonic, sleep
from types import MappingProxyType
from typing import Any

import httpx
import orjson

from tests.acceptance import patient

CHECK_S = 0.2
SENT_AT_ONCE = 1000


def put_documents(url: str, collection: str, texts: Mapping[str, str], space: str = "") -> None:
    """Store texts by id, each embedded by the server unless `space` says whose vectors come along.

    Those are of two values, and mean nothing.
    """
    path = f"{url}/collections/{collection}/documents" + (f"?space={space}" if space else "")
    vector = {"vector": [1.0, 0.5]} if space else {}
    lines = [orjson.dumps({"id": each, "text": text} | vector) for each, text in texts.items()]
    for start in range(0, len(lines), SENT_AT_ONCE):
        answer = httpx.post(
            path,
            content=b"\n".join(lines[start : start + SENT_AT_ONCE]),
            headers={"Content-Type": "application/json"},
            timeout=patient.DEADLINE_S,
            trust_env=False,
        )
        assert answer.status_code == 200, answer.text
        assert answer.json()["failed"] == 0, answer.text


def begin(
    url: str,
    collection: str,
    model: str,
    hooks: Iterable[str] = (),
    relevant: Mapping[str, Iterable[str]] = MappingProxyType({}),
) -> int:
    """Begin a migration; returns its number. relevant: ids by judged query."""
    judged = [
        {"query": query, "relevant": dict.fromkeys(ids, 1.0)} for query, ids in relevant.items()
    ]
    answer = patient.post(
        f"{url}/migrations",
        {"collection": collection, "model": model, "hooks": [*hooks], "queries": judged},
    )
    assert answer.status_code == 200, answer.text
    number: int = answer.json()["id"]
    return number


def status(url: str, number: int) -> dict[str, Any]:
    """How it stands."""
    answer = patient.get(f"{url}/migrations/{number}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def until(
    url: str, number: int, states: Iterable[str], within_s: float = patient.DEADLINE_S * 5
) -> dict[str, Any]:
    """How it stands once it is in one of these states."""
    wanted = {*states}
    deadline_s = monotonic() + within_s
    found = status(url, number)
    while found["state"] not in wanted:
        assert monotonic() < deadline_s, found
        assert found["state"] != "failed", found
        sleep(CHECK_S)
        found = status(url, number)
    return found


def change(url: str, number: int, step: str, **body: object) -> dict[str, Any]:
    """Change its state."""
    answer = patient.post(f"{url}/migrations/{number}/{step}", body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found
