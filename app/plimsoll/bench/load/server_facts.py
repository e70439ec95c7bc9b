"""What the server says of itself after a run: a figure without it compares with nothing."""

from collections.abc import Mapping
from typing import Any

import httpx

TIMEOUT_S = 5.0
MIB = 1 << 20


async def server_facts(url: str, headers: Mapping[str, str]) -> dict[str, str]:
    """Label → value, from GET /health; empty where the server does not tell."""
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=TIMEOUT_S) as client:
            answer = await client.get(f"{url.rstrip('/')}/health", headers=dict(headers))
            return _facts(answer.json())
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return {}


def _facts(health: Mapping[str, Any]) -> dict[str, str]:
    model, memory, plan = health["model"], health["memory"], health["plan"]
    return {
        "server": f"Plimsoll {health['version']}",
        "model": f"{model['name']} {model['fingerprint'] or 'closed'}",
        "memory": f"{memory['used_bytes'] // MIB} of {memory['budget_bytes'] // MIB} MiB "
        f"({memory['budget_source']})",
        "engine": f"{plan['engine_threads']} threads, memory step {plan['step']}",
    }
