"""Run waves of token ids through the layers.

A *wave* is a list of sequences that pass layer i together before any of them enters
layer i + 1, so that one pass over the weights serves them all. Nothing is padded:
short texts are joined for the token-wise parts (a *pack*), long ones cut into slices,
and attention always sees exactly one whole text.

Bits: the plain kernel gives every row the same bits whatever rows stand beside it, on any
number of threads, except a matrix of a single row, which takes another path in the library:
so no slice has one row. The swapped kernel rounds differently. With `exact` nothing is packed
and the kernel follows from the text's own length.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from threading import Lock

import numpy as np

from app.encoder.architecture import Architecture
from app.encoder.graph import Kernel
from app.encoder.session import LayerSessions, Runner, build_graphs
from app.encoder.weights import Weights

# Joining more than this many tokens gains nothing: the kernels are at full speed.
PACK_TOKENS = 256
# Token-wise intermediates grow by tens of kilobytes a token, so long texts are cut for them.
SLICE_TOKENS = 1024
# Below, the swapped kernel has too few columns; above, re-packing weights has paid off.
SWAPPED_TOKENS = range(12, 65)


@dataclass
class _Unit:
    """Texts that pass the token-wise graphs together; owned by one engine thread at a time."""

    indices: list[int]
    lengths: list[int]
    states: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float32))
    positions: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def n_tokens(self) -> int:
        return sum(self.lengths)

    def texts(self) -> Iterator[slice]:
        """Rows of each text."""
        start = 0
        for length in self.lengths:
            yield slice(start, start + length)
            start += length

    def slices(self) -> Iterator[slice]:
        """Rows of each token-wise run: at most SLICE_TOKENS, nearly equal, never a single row."""
        n_tokens = self.n_tokens
        n_slices = -(-n_tokens // SLICE_TOKENS)
        bounds = [n_tokens * i // n_slices for i in range(n_slices + 1)]
        yield from (slice(a, b) for a, b in pairwise(bounds))


class Engine:
    """Owns sessions, engine threads and their bindings; shares the weights read-only."""

    def __init__(
        self, architecture: Architecture, weights: Weights, *, n_threads: int, exact: bool = False
    ) -> None:
        self._architecture = architecture
        self._weights = weights
        self._exact = exact
        self._n_threads = n_threads
        graphs = build_graphs(architecture)
        layers = [weights.layer(i) for i in range(architecture.n_layers)]
        single = LayerSessions(graphs, 1)
        whole = LayerSessions(graphs, n_threads) if n_threads > 1 else single
        self._whole_runner = Runner(whole, layers, weights.embedding())
        self._runners = [Runner(single, layers, weights.embedding()) for _ in range(n_threads)]
        self._pool = ThreadPoolExecutor(max(1, n_threads - 1), thread_name_prefix="engine")
        self._lock = Lock()

    def encode(self, wave: Sequence[np.ndarray], *, drop_pages: bool = False) -> list[np.ndarray]:
        """Last hidden states of each sequence.

        wave: int64 token ids (tokens,), each at least 2 long (a lone row would change bits).
        drop_pages: give each layer's pages back to the kernel after its use.
        Returns float32 (tokens, hidden) per sequence, in the order given.
        """
        units = self._units([len(ids) for ids in wave])
        with self._lock:
            self._weights.verify_tokens(wave)
            self._each(units, partial(self._start, wave))
            for layer in range(self._architecture.n_layers):
                self._weights.enter_layer(layer, prefetch=drop_pages)
                self._each(units, partial(self._layer, layer))
                if drop_pages:
                    self._weights.drop_layer(layer)
        states: list[np.ndarray] = [np.empty(0)] * len(wave)
        for unit in units:
            for index, rows in zip(unit.indices, unit.texts(), strict=True):
                states[index] = unit.states[rows]
        return states

    def close(self) -> None:
        """Stop the engine threads and drop every binding to the weights."""
        self._pool.shutdown()
        for runner in (self._whole_runner, *self._runners):
            runner.close()

    def _units(self, lengths: list[int]) -> list[_Unit]:
        """Packs, longest first; a text of PACK_TOKENS or more stands alone."""
        units: list[_Unit] = []
        open_pack: _Unit | None = None
        for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            length = lengths[index]
            if open_pack is None or self._exact or open_pack.n_tokens + length > PACK_TOKENS:
                open_pack = _Unit([], [])
                units.append(open_pack)
            open_pack.indices.append(index)
            open_pack.lengths.append(length)
        return units

    def _each(self, units: list[_Unit], work: Callable[[Runner, _Unit], None]) -> None:
        """Do `work` on every unit: with all threads on one where it is most of the work left."""
        left = sum(unit.n_tokens for unit in units)
        alone = 0
        while alone < len(units) and units[alone].n_tokens * self._n_threads > left:
            work(self._whole_runner, units[alone])
            left -= units[alone].n_tokens
            alone += 1
        rest = iter(units[alone:])

        def drain(runner: Runner) -> None:
            # next() on a list's iterator is atomic: each unit goes to one thread.
            for unit in rest:
                work(runner, unit)

        n_helpers = min(self._n_threads, len(units) - alone) - 1
        helpers = [self._pool.submit(drain, self._runners[i + 1]) for i in range(n_helpers)]
        try:
            drain(self._runners[0])
        finally:
            for helper in helpers:
                helper.result()

    def _start(self, wave: Sequence[np.ndarray], runner: Runner, unit: _Unit) -> None:
        unit.positions = np.concatenate([np.arange(n, dtype=np.int64) for n in unit.lengths])
        ids = np.concatenate([wave[index] for index in unit.indices])
        unit.states = np.empty((len(ids), self._architecture.hidden), np.float32)
        for rows in unit.slices():
            runner.embed_norm(
                self._weights.embed(ids[rows], unit.positions[rows]), unit.states[rows]
            )

    def _layer(self, layer: int, runner: Runner, unit: _Unit) -> None:
        kernel = Kernel.SWAPPED if unit.n_tokens in SWAPPED_TOKENS else Kernel.PLAIN
        queries, keys, values = (np.empty_like(unit.states) for _ in range(3))
        for rows in unit.slices():
            runner.project(
                layer,
                kernel,
                unit.states[rows],
                unit.positions[rows],
                (queries[rows], keys[rows], values[rows]),
            )
        context = np.empty_like(unit.states)
        for rows in unit.texts():
            runner.attend(queries[rows], keys[rows], values[rows], context[rows])
        # Queries are no longer needed: their memory takes the new states.
        new_states = queries
        for rows in unit.slices():
            runner.transform(layer, kernel, unit.states[rows], context[rows], new_states[rows])
        unit.states = new_states
