"""The response headers in which TEI says what a request took, and their schema."""

from collections.abc import Mapping
from time import perf_counter
from typing import Any

from plimsoll.api.replies import vector_headers
from plimsoll.serving.tasks import Embeddings
from plimsoll.telemetry.current_request import current_request

# Stages of a request, by the header that tells their time.
STAGES = {
    "x-tokenization-time": ("tokenize",),
    "x-queue-time": ("admission", "queue"),
    "x-inference-time": ("encode", "pool"),
}
MILLISECONDS = {"type": "integer", "minimum": 0}
TOOK: dict[str, Any] = {
    "x-compute-tokens": {
        "description": "Tokens that a model computed.",
        "required": True,
        "schema": {"type": "integer", "minimum": 0},
    },
    "x-total-time": {
        "description": "Milliseconds, from the request's fields to the last vector.",
        "required": True,
        "schema": MILLISECONDS,
    },
    **{
        name: {
            "description": f"Milliseconds of it in: {', '.join(stages)}.",
            "required": True,
            "schema": MILLISECONDS,
        }
        for name, stages in STAGES.items()
    },
}


class Stopwatch:
    """Owns when a use case began."""

    def __init__(self) -> None:
        self._began_s = perf_counter()

    def took(self, n_tokens: int) -> dict[str, str]:
        """Headers of an answer that is about to be rendered.

        Parts of a long list wait and run beside each other; no stage is said to take longer than
        all of it.
        """
        total_s = perf_counter() - self._began_s
        request = current_request()
        stages: Mapping[str, float] = {} if request is None else request.stage_times().total_s
        spent_s = {
            header: min(total_s, sum(stages.get(name, 0.0) for name in names))
            for header, names in STAGES.items()
        }
        times = {"x-total-time": total_s, **spent_s}
        said = {name: str(round(1000 * seconds)) for name, seconds in times.items()}
        return {"x-compute-tokens": str(n_tokens), **said}

    def took_for(self, result: Embeddings) -> dict[str, str]:
        """The same, with the space of the vectors and how many texts were cut."""
        return {**self.took(result.n_tokens), **vector_headers(result)}
