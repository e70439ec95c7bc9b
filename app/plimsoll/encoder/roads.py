"""The roads of texts through a model: in int8, in float32, or the short ones in float32.

Weights, backend and engine of a road go together; a text takes one road by its number of tokens.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from plimsoll.encoder.architecture import Architecture
from plimsoll.encoder.backends.protocol import Backend, OpenBackend
from plimsoll.encoder.engine import Engine
from plimsoll.encoder.quantization.codes_file import CodesFile
from plimsoll.encoder.weights import Weights
from plimsoll.sidecar.sidecar import Sidecar


@dataclass(frozen=True)
class Road:
    """What takes texts of so many tokens and more. Owned by a model, which closes it."""

    least_tokens: int
    weights: Weights
    backend: Backend
    engine: Engine

    def close(self) -> None:
        """Stop its threads, close the backend, and drop the views of weights and codes."""
        self.engine.close()
        self.backend.close()
        self.weights.close()


def road_plan(codes: CodesFile | None) -> list[tuple[int, CodesFile | None]]:
    """Least tokens of a text on each road, and the codes there; of the most tokens first."""
    short_tokens = codes.index.choice.short_tokens if codes else 0
    return [(short_tokens, codes), (0, None)] if short_tokens else [(0, codes)]


def open_roads(
    architecture: Architecture,
    sidecar: Sidecar,
    codes: CodesFile | None,
    open_backends: Sequence[OpenBackend],
    *,
    n_threads: int,
) -> list[Road]:
    """Open every road over a sidecar and codes, which are closed after them.

    open_backends: one for each road of `road_plan`, in its order.
    """
    roads = []
    with ExitStack() as opened:
        plan = road_plan(codes)
        for (least_tokens, own_codes), open_backend in zip(plan, open_backends, strict=True):
            weights = Weights(architecture, sidecar, own_codes)
            opened.callback(weights.close)
            backend = open_backend(architecture, weights.embedding(), weights.layers())
            opened.callback(backend.close)
            engine = Engine(architecture, weights, backend, n_threads=n_threads)
            opened.callback(engine.close)
            roads.append(Road(least_tokens, weights, backend, engine))
        opened.pop_all()
    return roads
