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

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial

import numpy as np

from app.encoder.architecture import Architecture
from app.encoder.graph import Kernel
from app.encoder.layout import (
    ATTEND_TOKENS,
    PACK_TOKENS,
    SLICE_TOKENS,
    group_texts,
    largest_slice,
    n_shared_units,
    slices,
)
from app.encoder.session import LayerSessions, Runner, build_graphs
from app.encoder.weights import Rotation, Weights

# Below, the swapped kernel has too few columns; above, re-packing weights has paid off.
SWAPPED_TOKENS = range(12, 65)


@dataclass(frozen=True)
class _Unit:
    """Texts that pass the token-wise graphs together: a run of rows of the wave's states."""

    indices: tuple[int, ...]  # of the texts in the wave
    texts: tuple[slice, ...]  # rows of each text, of the wave's states
    rows: slice
    rotation: Rotation | None  # None where positions are not rotary

    @property
    def n_tokens(self) -> int:
        return int(self.rows.stop - self.rows.start)

    @property
    def slices(self) -> list[slice]:
        """Rows of each token-wise run."""
        return slices(self.rows, SLICE_TOKENS)


@dataclass(frozen=True)
class _Wave:
    """What a wave carries from layer to layer; each unit's rows belong to one thread at a time."""

    units: list[_Unit]
    ids: np.ndarray  # int64 (tokens,)
    positions: np.ndarray  # int64 (tokens,): each token's place in its own text
    states: np.ndarray  # float32 (tokens, hidden)
    n_threads: int


class Engine:
    """Owns sessions, engine threads and their bindings; shares the weights read-only.

    Its bindings are for one call at a time: whoever owns the engine sees to that.
    """

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
        self._graphs = graphs
        self._layers = layers
        self._arena_tokens = 0  # largest slice since the arena was emptied
        self._runners = [Runner(single, layers, weights.embedding()) for _ in range(n_threads)]
        # By the number of threads that share one unit; made when first needed.
        self._shared = {1: self._runners[0]}
        self._pool = ThreadPoolExecutor(max(1, n_threads - 1), thread_name_prefix="engine")

    def encode(
        self,
        texts: Sequence[np.ndarray],
        *,
        drop_pages: bool = False,
        n_threads: int | None = None,
        pack_tokens: int = PACK_TOKENS,
        kept_layers: int = 0,
    ) -> list[np.ndarray]:
        """Last hidden states of each sequence.

        texts: int64 token ids (tokens,), each at least 2 long (a lone row would change bits).
        drop_pages: give each layer's pages back to the kernel after its use.
        n_threads: use so many of the engine's threads; None: all.
        pack_tokens: join short texts up to so many tokens.
        kept_layers: with `drop_pages`, spare so many layers, and let none of the others' pages
            linger and push out theirs.
        Returns float32 (tokens, hidden) per sequence, in the order given.
        """
        self._weights.verify_tokens(texts)
        n_threads = min(n_threads or self._n_threads, self._n_threads)
        wave = self._lay_out(texts, n_threads, pack_tokens)
        self._fit_arena(largest_slice(wave.units[0].n_tokens))
        self._each(wave, self._start)
        for layer in range(self._architecture.n_layers):
            self._weights.enter_layer(layer, prefetch=drop_pages)
            self._each(wave, partial(self._layer, layer))
            if drop_pages and layer >= kept_layers:
                self._weights.drop_layer(layer, evict=kept_layers > 0)
        states: list[np.ndarray] = [wave.states] * len(texts)
        for unit in wave.units:
            for index, rows in zip(unit.indices, unit.texts, strict=True):
                states[index] = wave.states[rows]
        return states

    def release_memory(self) -> None:
        """Give unused activation memory back; for when nothing has run for a while."""
        self._runners[0].shrink_arena()
        self._arena_tokens = 0

    def _fit_arena(self, n_tokens: int) -> None:
        """Empty the arena before slices larger than those it has grown to.

        They would not fit what it holds: it would keep memory for either size.
        """
        if n_tokens > self._arena_tokens:
            self.release_memory()
            self._arena_tokens = n_tokens

    def close(self) -> None:
        """Stop the engine threads and drop every binding to the weights."""
        self._pool.shutdown()
        for runner in (*self._runners, *self._shared.values()):
            runner.close()
        self._layers.clear()

    def _shared_runner(self, n_threads: int) -> Runner:
        if n_threads not in self._shared:
            sessions = LayerSessions(self._graphs, n_threads)
            self._shared[n_threads] = Runner(sessions, self._layers, self._weights.embedding())
        return self._shared[n_threads]

    def _lay_out(self, texts: Sequence[np.ndarray], n_threads: int, pack_tokens: int) -> _Wave:
        """Group texts into units of nearly equal size, the largest first."""
        lengths = [len(ids) for ids in texts]
        groups = group_texts(
            lengths, n_threads=n_threads, exact=self._exact, pack_tokens=pack_tokens
        )
        units = []
        stop = 0
        for group in groups:
            start, rows = stop, []
            for index in group:
                rows.append(slice(stop, stop + len(texts[index])))
                stop += len(texts[index])
            rotation = self._weights.rotation(max(len(texts[index]) for index in group))
            units.append(_Unit(tuple(group), tuple(rows), slice(start, stop), rotation))
        order = [index for group in groups for index in group]
        return _Wave(
            units=units,
            ids=np.concatenate([texts[index] for index in order]),
            positions=np.concatenate([np.arange(len(texts[i]), dtype=np.int64) for i in order]),
            states=np.empty((stop, self._architecture.hidden), np.float32),
            n_threads=n_threads,
        )

    def _kernel(self, wave: _Wave, unit: _Unit) -> Kernel:
        # Not the pack's own size: packs follow from the number of threads, and bits must not.
        n_tokens = unit.n_tokens if self._exact else len(wave.ids)
        return Kernel.SWAPPED if n_tokens in SWAPPED_TOKENS else Kernel.PLAIN

    def _each(self, wave: _Wave, work: Callable[[Runner, _Wave, _Unit], None]) -> None:
        """Do `work` on every unit: with all threads on one where it is most of the work left."""
        n_threads = wave.n_threads
        alone = n_shared_units([unit.n_tokens for unit in wave.units], n_threads)
        for unit in wave.units[:alone]:
            work(self._shared_runner(n_threads), wave, unit)
        rest = iter(wave.units[alone:])

        def drain(runner: Runner) -> None:
            # next() on a list's iterator is atomic: each unit goes to one thread.
            for unit in rest:
                work(runner, wave, unit)

        n_helpers = min(n_threads, len(wave.units) - alone) - 1
        helpers = [self._pool.submit(drain, self._runners[i + 1]) for i in range(n_helpers)]
        try:
            drain(self._runners[0])
        finally:
            wait(helpers)  # all of them, whoever failed: their bindings are for one call at a time
        for helper in helpers:
            helper.result()

    def _start(self, runner: Runner, wave: _Wave, unit: _Unit) -> None:
        for rows in unit.slices:
            embedded = self._weights.embed(wave.ids[rows], wave.positions[rows])
            runner.embed_norm(embedded, wave.states[rows])

    def _layer(self, layer: int, runner: Runner, wave: _Wave, unit: _Unit) -> None:
        kernel = self._kernel(wave, unit)
        # One block for queries, keys and values, so that it is mapped and unmapped as a whole
        # instead of breaking up the heap.
        block = np.empty((3, unit.n_tokens, self._architecture.hidden), np.float32)
        start = unit.rows.start
        for rows in unit.slices:
            local = slice(rows.start - start, rows.stop - start)
            runner.project(
                layer,
                kernel,
                wave.states[rows],
                wave.positions[rows],
                unit.rotation,
                (block[0, local], block[1, local], block[2, local]),
            )
        for rows in unit.texts:
            local = slice(rows.start - start, rows.stop - start)
            for asked in slices(local, ATTEND_TOKENS):
                runner.attend(block[0, asked], block[1, local], block[2, local])
        for rows in unit.slices:
            local = slice(rows.start - start, rows.stop - start)
            runner.transform(layer, kernel, wave.states[rows], block[0, local])
