"""Hugging Face's Text Embeddings Inference, below /tei.

Source: the OpenAPI document of TEI 1.9.3, and its router's code where that says more.
"""

from fastapi import APIRouter

from plimsoll.api.dialects.tei import embeddings, information, ranking, tokens
from plimsoll.api.dialects.tei.errors import BASE, ERRORS, OPENAI_ERRORS, OPENAI_PATHS
from plimsoll.serving.core import ServingCore
from plimsoll.telemetry.metrics import Telemetry

__all__ = ["BASE", "ERRORS", "OPENAI_ERRORS", "OPENAI_PATHS", "router"]


def router(
    core: ServingCore, telemetry: Telemetry, *, version: str, metrics_open: bool, has_keys: bool
) -> APIRouter:
    """Every route of the dialect.

    metrics_open: a scrape needs no key. has_keys: what is open to everyone names no path or host.
    """
    routes = APIRouter(tags=["tei"])
    for part in (
        embeddings.router(core),
        ranking.router(core),
        tokens.router(core),
        information.router(
            core, telemetry, version=version, metrics_open=metrics_open, has_keys=has_keys
        ),
    ):
        routes.include_router(part)
    return routes
