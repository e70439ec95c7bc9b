"""Plimsoll: an embedding server that holds its memory line.

`Embedder` is its engine without a server. It brings NumPy and ONNX Runtime, so it is imported when
it is first asked for.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plimsoll.embedder import Embedder

__version__ = "0.1.0"

__all__ = ["Embedder", "__version__"]


def __getattr__(name: str) -> object:
    if name == "Embedder":
        from plimsoll.embedder import Embedder

        return Embedder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
