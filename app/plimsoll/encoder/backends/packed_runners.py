"""How several threads work on one pack, and on one text, where weights are constants.

A session's threads cannot be changed, and a set with many threads inside operators would be many
pools: so the threads that share a pack take some of its rows each, on the sessions of one thread.
A lone text has too few rows for that; it passes one session, whose one pool divides every product.
"""

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import onnxruntime as ort

from plimsoll.encoder.backends.onnx_runner import (
    Runner,
    bind_input,
    bind_output,
    bind_rotation,
)
from plimsoll.encoder.backends.protocol import Rotation
from plimsoll.machine import mappings

# Fewer rows are not worth a thread's waking; never a single row, whose bits are its own.
LEAST_ROWS = 16


class SharedRunner:
    """A LayerRunner for several threads. Owns those beside the caller's.

    attending: runs what is not divided by rows, with threads inside its operators. parts: one
    runner a thread.
    """

    def __init__(self, attending: Runner, parts: Sequence[Runner]) -> None:
        self._attending = attending
        self._parts = parts
        self._pool = ThreadPoolExecutor(len(parts) - 1, thread_name_prefix="engine-rows")

    def embed_norm(self, states: np.ndarray, normed: np.ndarray) -> None:
        """LayerNorm of summed embeddings into `normed`."""
        self._parts[0].embed_norm(states, normed)

    def attend(self, queries: np.ndarray, keys: np.ndarray, values: np.ndarray) -> None:
        """Attention of some of a text's tokens to all of them, written over `queries`."""
        self._attending.attend(queries, keys, values)

    def project(
        self,
        layer: int,
        states: np.ndarray,
        positions: np.ndarray,
        rotation: Rotation | None,
        outputs: tuple[np.ndarray, np.ndarray, np.ndarray],
    ) -> None:
        """Queries, keys and values of `states` into `outputs`."""
        queries, keys, values = outputs

        def work(runner: Runner, rows: slice) -> None:
            own = (queries[rows], keys[rows], values[rows])
            runner.project(layer, states[rows], positions[rows], rotation, own)

        self._divide(len(states), work)

    def transform(self, layer: int, states: np.ndarray, context: np.ndarray) -> None:
        """The rest of the layer, in place."""

        def work(runner: Runner, rows: slice) -> None:
            runner.transform(layer, states[rows], context[rows])

        self._divide(len(states), work)

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown()

    def _divide(self, n_rows: int, work: Callable[[Runner, slice], None]) -> None:
        n_parts = max(1, min(len(self._parts), n_rows // LEAST_ROWS))
        bounds = [n_rows * part // n_parts for part in range(n_parts + 1)]
        parts = [slice(*pair) for pair in itertools.pairwise(bounds)]
        helpers = [
            self._pool.submit(work, runner, rows)
            for runner, rows in zip(self._parts[1:], parts[1:], strict=False)
        ]
        try:
            work(self._parts[0], parts[0])
        finally:
            wait(helpers)  # also after a failure: runners are for one call at a time
        for helper in helpers:
            helper.result()


class WholeModelRunner:
    """Takes a lone text through one session over all layers: a WholeRunner."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session: ort.InferenceSession | None = session
        self._binding: ort.IOBinding | None = session.io_binding()

    def run(self, states: np.ndarray, positions: np.ndarray, rotation: Rotation | None) -> None:
        """All layers, in place: the first layer is the last to read what the last one writes."""
        assert self._session is not None  # noqa: S101 - not used after `close`
        bind_input(self._binding, "states", states)
        bind_rotation(self._binding, positions, rotation)
        bind_output(self._binding, "new_states", states)
        self._session.run_with_iobinding(self._binding)

    def close(self) -> None:
        """Drop the session, and so what it has mapped."""
        with mappings.unmapping():
            self._binding = self._session = None
