"""Single requests to a server on a machine that may have much else to do."""

import httpx

DEADLINE_S = 120.0  # for what must come; nothing is measured by it


def get(url: str) -> httpx.Response:
    """The answer, of any status."""
    return httpx.get(url, timeout=DEADLINE_S, trust_env=False)


def post(url: str, body: dict[str, object]) -> httpx.Response:
    """The answer to JSON, of any status."""
    return httpx.post(url, json=body, timeout=DEADLINE_S, trust_env=False)
