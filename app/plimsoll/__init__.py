"""Plimsoll: an embedding server that holds its memory line.

`Client` and `AsyncClient` ask such a server; `Embedder` is its engine without a server. They bring
httpx, NumPy and ONNX Runtime, so each is imported when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plimsoll.client.async_client import AsyncClient
    from plimsoll.client.client import Client
    from plimsoll.embedder import Embedder

__version__ = "0.1.0"

__all__ = ["AsyncClient", "Client", "Embedder", "__version__"]

_HOMES = {
    "AsyncClient": "plimsoll.client.async_client",
    "Client": "plimsoll.client.client",
    "Embedder": "plimsoll.embedder",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
