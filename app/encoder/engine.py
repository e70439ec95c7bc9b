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
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from itertools import pairwise

import numpy as np

from app.encoder.architecture import Architecture
from app.encoder.graph import Kernel
from app.encoder.session import LayerSessions, Runner, build_graphs
from app.encoder.weights import Weights

# Joining more than this many tokens gains nothing: the kernels are at full speed.
PACK_TOKENS = 512
# So few tokens are not worth splitting between threads.
SHARED_TOKENS = 256
# Token-wise intermediates take tens of kilobytes a token, so long texts are cut for them;
# the kernels reach full speed well below.
SLICE_TOKENS = 512
# Below, the swapped kernel has too few columns; above, re-packing weights has paid off.
SWAPPED_TOKENS = range(12, 65)


@dataclass(frozen=True)
class _Unit:
    """Texts that pass the token-wise graphs together: a run of rows of the wave's states."""

    indices: tuple[int, ...]  # of the texts in the wave
    texts: tuple[slice, ...]  # rows of each text, of the wave's states
    rows: slice

    @property
    def n_tokens(self) -> int:
        return int(self.rows.stop - self.rows.start)

    def slices(self) -> Iterator[slice]:
        """Rows of each token-wise run: at most SLICE_TOKENS, nearly equal, never a single row."""
        n_slices = -(-self.n_tokens // SLICE_TOKENS)
        start = self.rows.start
        bounds = [start + self.n_tokens * i // n_slices for i in range(n_slices + 1)]
        yield from (slice(a, b) for a, b in pairwise(bounds))


@dataclass(frozen=True)
class _Wave:
    """What a wave carries from layer to layer; each unit's rows belong to one thread at a time."""

    units: list[_Unit]
    ids: np.ndarray  # int64 (tokens,)
    positions: np.ndarray  # int64 (tokens,): each token's place in its own text
    states: np.ndarray  # float32 (tokens, hidden)


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
        whole = LayerSessions(graphs, n_threads) if n_threads > 1 else single
        self._whole_runner = Runner(whole, layers, weights.embedding())
        self._runners = [Runner(single, layers, weights.embedding()) for _ in range(n_threads)]
        self._pool = ThreadPoolExecutor(max(1, n_threads - 1), thread_name_prefix="engine")

    def encode(self, texts: Sequence[np.ndarray], *, drop_pages: bool = False) -> list[np.ndarray]:
        """Last hidden states of each sequence.

        texts: int64 token ids (tokens,), each at least 2 long (a lone row would change bits).
        drop_pages: give each layer's pages back to the kernel after its use.
        Returns float32 (tokens, hidden) per sequence, in the order given.
        """
        self._weights.verify_tokens(texts)
        wave = self._lay_out(texts)
        self._each(wave, self._start)
        for layer in range(self._architecture.n_layers):
            self._weights.enter_layer(layer, prefetch=drop_pages)
            self._each(wave, partial(self._layer, layer))
            if drop_pages:
                self._weights.drop_layer(layer)
        states: list[np.ndarray] = [wave.states] * len(texts)
        for unit in wave.units:
            for index, rows in zip(unit.indices, unit.texts, strict=True):
                states[index] = wave.states[rows]
        return states

    def release_memory(self) -> None:
        """Give unused activation memory back; for when nothing has run for a while."""
        self._whole_runner.shrink_arena()

    def close(self) -> None:
        """Stop the engine threads and drop every binding to the weights."""
        self._pool.shutdown()
        for runner in (self._whole_runner, *self._runners):
            runner.close()

    def _lay_out(self, texts: Sequence[np.ndarray]) -> _Wave:
        """Group texts into units of nearly equal size, the largest first."""
        groups = self._group([len(ids) for ids in texts])
        units = []
        stop = 0
        for group in groups:
            start, rows = stop, []
            for index in group:
                rows.append(slice(stop, stop + len(texts[index])))
                stop += len(texts[index])
            units.append(_Unit(tuple(group), tuple(rows), slice(start, stop)))
        order = [index for group in groups for index in group]
        return _Wave(
            units=units,
            ids=np.concatenate([texts[index] for index in order]),
            positions=np.concatenate([np.arange(len(texts[i]), dtype=np.int64) for i in order]),
            states=np.empty((stop, self._architecture.hidden), np.float32),
        )

    def _group(self, lengths: Sequence[int]) -> list[list[int]]:
        """Indices of the texts of each unit.

        Alone: every text where bits must depend on it alone, and one that fills a pack. The
        others go, longest first, to the lightest of as many packs as keep every thread busy
        to the end of a layer; few tokens stay one pack, which all threads share.
        """
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        if self._exact:
            return [[index] for index in order]
        groups = [[index] for index in order if lengths[index] >= PACK_TOKENS]
        short = order[len(groups) :]
        n_tokens = sum(lengths[index] for index in short)
        rounds = -(-n_tokens // (PACK_TOKENS * self._n_threads))
        n_packs = 1 if n_tokens <= SHARED_TOKENS else min(len(short), rounds * self._n_threads)
        packs: list[list[int]] = [[] for _ in range(n_packs if short else 0)]
        loads = [(0, pack) for pack in range(len(packs))]
        for index in short:
            load, pack = heappop(loads)
            packs[pack].append(index)
            heappush(loads, (load + lengths[index], pack))
        packs.sort(key=lambda pack: -sum(lengths[index] for index in pack))
        return groups + packs

    def _kernel(self, wave: _Wave, unit: _Unit) -> Kernel:
        # Not the pack's own size: packs follow from the number of threads, and bits must not.
        n_tokens = unit.n_tokens if self._exact else len(wave.ids)
        return Kernel.SWAPPED if n_tokens in SWAPPED_TOKENS else Kernel.PLAIN

    def _each(self, wave: _Wave, work: Callable[[Runner, _Wave, _Unit], None]) -> None:
        """Do `work` on every unit: with all threads on one where it is most of the work left."""
        left = len(wave.ids)
        alone = 0
        while alone < len(wave.units) and wave.units[alone].n_tokens * self._n_threads > left:
            work(self._whole_runner, wave, wave.units[alone])
            left -= wave.units[alone].n_tokens
            alone += 1
        rest = iter(wave.units[alone:])

        def drain(runner: Runner) -> None:
            # next() on a list's iterator is atomic: each unit goes to one thread.
            for unit in rest:
                work(runner, wave, unit)

        n_helpers = min(self._n_threads, len(wave.units) - alone) - 1
        helpers = [self._pool.submit(drain, self._runners[i + 1]) for i in range(n_helpers)]
        try:
            drain(self._runners[0])
        finally:
            for helper in helpers:
                helper.result()

    def _start(self, runner: Runner, wave: _Wave, unit: _Unit) -> None:
        for rows in unit.slices():
            embedded = self._weights.embed(wave.ids[rows], wave.positions[rows])
            runner.embed_norm(embedded, wave.states[rows])

    def _layer(self, layer: int, runner: Runner, wave: _Wave, unit: _Unit) -> None:
        kernel = self._kernel(wave, unit)
        # One block for queries, keys, values and context, so that it is mapped and unmapped
        # as a whole instead of breaking up the heap.
        block = np.empty((4, unit.n_tokens, self._architecture.hidden), np.float32)
        start = unit.rows.start
        for rows in unit.slices():
            local = slice(rows.start - start, rows.stop - start)
            runner.project(
                layer,
                kernel,
                wave.states[rows],
                wave.positions[rows],
                (block[0, local], block[1, local], block[2, local]),
            )
        for rows in unit.texts:
            local = slice(rows.start - start, rows.stop - start)
            runner.attend(block[0, local], block[1, local], block[2, local], block[3, local])
        for rows in unit.slices():
            local = slice(rows.start - start, rows.stop - start)
            runner.transform(layer, kernel, wave.states[rows], block[3, local])
