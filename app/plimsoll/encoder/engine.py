"""Take runs of texts through the layers.

The words for sizes are drawn in `layout`. The texts of a run pass layer i together before any of
them enters layer i + 1, so that one pass over the weights serves them all. Nothing is padded.

Bits: a backend gives every row of a token-wise operation the same bits beside any other rows, if
there is more than one: so no slice has one row, and a text's bits depend on itself alone.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial

import numpy as np

from plimsoll.encoder.architecture import Architecture
from plimsoll.encoder.backends.protocol import (
    Backend,
    LayerPages,
    LayerRunner,
    Rotation,
    WholeRunner,
)
from plimsoll.encoder.layout import (
    ATTEND_TOKENS,
    PACK_TOKENS,
    SLICE_TOKENS,
    largest_slice,
    n_shared_packs,
    pack_texts,
    slices,
)
from plimsoll.encoder.weights import Weights


@dataclass(frozen=True)
class _Pack:
    """Texts that pass the token-wise operations together: some rows of the run's states."""

    indices: tuple[int, ...]  # of the texts in the run
    texts: tuple[slice, ...]  # rows of each text, of the run's states
    rows: slice
    rotation: Rotation | None  # None where positions are not rotary

    @property
    def n_tokens(self) -> int:
        return int(self.rows.stop - self.rows.start)

    @property
    def slices(self) -> list[slice]:
        """Rows that a token-wise operation takes at once."""
        return slices(self.rows, SLICE_TOKENS)


@dataclass(frozen=True)
class _Run:
    """What a run carries from layer to layer; each pack's rows belong to one thread at a time."""

    packs: list[_Pack]
    ids: np.ndarray  # int64 (tokens,)
    positions: np.ndarray  # int64 (tokens,): each token's place in its own text
    states: np.ndarray  # float32 (tokens, hidden)
    n_threads: int


class Engine:
    """Owns engine threads and their runners; shares weights and backend, which others close.

    Its runners are for one call at a time, and for calls that it makes itself between two layers;
    the engine's owner sees to that.
    """

    def __init__(
        self,
        architecture: Architecture,
        weights: Weights,
        backend: Backend,
        *,
        n_threads: int,
    ) -> None:
        self._architecture = architecture
        self._weights = weights
        self._backend = backend
        self._pages: LayerPages = backend.pages or weights
        self._n_threads = n_threads
        self._runners = [backend.open_runner(1) for _ in range(n_threads)]
        # By the number of threads that share one pack; made when first needed.
        self._shared = {1: self._runners[0]}
        self._pool = ThreadPoolExecutor(max(1, n_threads - 1), thread_name_prefix="engine")

    def encode(
        self,
        texts: Sequence[np.ndarray],
        *,
        drop_pages: bool = False,
        n_threads: int | None = None,
        pack_tokens: int = PACK_TOKENS,
        kept_layers: int | None = None,
        between_layers: Callable[[], None] | None = None,
    ) -> list[np.ndarray]:
        """Last hidden states of each text.

        texts: int64 token ids (tokens,), each at least 2 long (a lone row would change bits).
        drop_pages: give each layer's pages back to the kernel after its use.
        n_threads: use so many of the engine's threads; None: all.
        pack_tokens: join short texts up to so many tokens.
        kept_layers: with `drop_pages`, spare so many layers, and take the others' pages out of the
            file cache at once: where a limit counts it, those that were used push out those that
            were read ahead. None: spare none, and let them linger in the cache.
        between_layers: called after each layer but the last, while no runner is at work; it may
            encode other texts. Without it a lone text may pass all layers in one call.
        Returns float32 (tokens, hidden) per text, in the order given.
        """
        self.check_unchanged()
        self._weights.verify_tokens(texts)
        n_threads = min(n_threads or self._n_threads, self._n_threads)
        run = self._lay_out(texts, n_threads, pack_tokens)
        self._backend.prepare(largest_slice(run.packs[0].n_tokens))
        self._each(run, self._start)
        whole = None if drop_pages or between_layers else self._whole_runner(run)
        for layer in range(self._architecture.n_layers):
            if between_layers is not None and layer:
                between_layers()
            self._pages.enter_layer(layer, prefetch=drop_pages, is_scarce=kept_layers is not None)
            if whole is None:
                self.check_unchanged()
                self._each(run, partial(self._layer, layer))
            if drop_pages and layer >= (kept_layers or 0):
                self._pages.drop_layer(layer, evict=kept_layers is not None)
        if whole is not None:
            self.check_unchanged()
            whole.run(run.states, run.positions, run.packs[0].rotation)
        states: list[np.ndarray] = [run.states] * len(texts)
        for pack in run.packs:
            for index, rows in zip(pack.indices, pack.texts, strict=True):
                states[index] = run.states[rows]
        return states

    def check_unchanged(self) -> None:
        """See that no mapped file has been written to or cut. Raises CacheCorruptError.

        Cheap enough for every layer: the less lies between the look and the reading, the fewer
        changes kill the process.
        """
        self._weights.check_unchanged()
        if self._pages is not self._weights:
            self._pages.check_unchanged()

    def close(self) -> None:
        """Stop the engine threads and let go of their runners."""
        self._pool.shutdown()
        self._runners.clear()
        self._shared.clear()

    def _whole_runner(self, run: _Run) -> WholeRunner | None:
        """What takes a lone text of no more than a slice through all layers in one call."""
        if len(run.ids) > SLICE_TOKENS or len(run.packs) > 1 or len(run.packs[0].texts) > 1:
            return None
        return self._backend.open_whole(run.n_threads)

    def _shared_runner(self, n_threads: int) -> LayerRunner:
        if n_threads not in self._shared:
            self._shared[n_threads] = self._backend.open_runner(n_threads)
        return self._shared[n_threads]

    def _lay_out(self, texts: Sequence[np.ndarray], n_threads: int, pack_tokens: int) -> _Run:
        """Join texts to packs of nearly equal size, the largest first."""
        lengths = [len(ids) for ids in texts]
        packed = pack_texts(
            lengths,
            n_threads=n_threads,
            context_tokens=self._architecture.context_tokens,
            pack_tokens=pack_tokens,
        )
        packs = []
        stop = 0
        for indices in packed:
            start, rows = stop, []
            for index in indices:
                rows.append(slice(stop, stop + lengths[index]))
                stop += lengths[index]
            rotation = self._weights.rotation(max(lengths[index] for index in indices))
            packs.append(_Pack(tuple(indices), tuple(rows), slice(start, stop), rotation))
        order = [index for indices in packed for index in indices]
        return _Run(
            packs=packs,
            ids=np.concatenate([texts[index] for index in order]),
            positions=np.concatenate([np.arange(lengths[i], dtype=np.int64) for i in order]),
            states=np.empty((stop, self._architecture.hidden), np.float32),
            n_threads=n_threads,
        )

    def _each(self, run: _Run, work: Callable[[LayerRunner, _Run, _Pack], None]) -> None:
        """Do `work` on every pack: with all threads on one where it is most of the work left."""
        n_threads = run.n_threads
        n_shared = n_shared_packs([pack.n_tokens for pack in run.packs], n_threads)
        for pack in run.packs[:n_shared]:
            work(self._shared_runner(n_threads), run, pack)
        rest = iter(run.packs[n_shared:])

        def drain(runner: LayerRunner) -> None:
            # next() on a list's iterator is atomic: each pack goes to one thread.
            for pack in rest:
                work(runner, run, pack)

        n_helpers = min(n_threads, len(run.packs) - n_shared) - 1
        helpers = [self._pool.submit(drain, self._runners[i + 1]) for i in range(n_helpers)]
        try:
            drain(self._runners[0])
        finally:
            wait(helpers)  # all of them, also after a failure: runners are for one call at a time
        for helper in helpers:
            helper.result()

    def _start(self, runner: LayerRunner, run: _Run, pack: _Pack) -> None:
        for rows in pack.slices:
            embedded = self._weights.embed(run.ids[rows], run.positions[rows])
            runner.embed_norm(embedded, run.states[rows])

    def _layer(self, layer: int, runner: LayerRunner, run: _Run, pack: _Pack) -> None:
        # One block for queries, keys and values, so that it is mapped and unmapped as a whole
        # instead of breaking up the heap.
        block = np.empty((3, pack.n_tokens, self._architecture.hidden), np.float32)
        start = pack.rows.start
        for rows in pack.slices:
            local = slice(rows.start - start, rows.stop - start)
            runner.project(
                layer,
                run.states[rows],
                run.positions[rows],
                pack.rotation,
                (block[0, local], block[1, local], block[2, local]),
            )
        for rows in pack.texts:
            local = slice(rows.start - start, rows.stop - start)
            for asked in slices(local, ATTEND_TOKENS):
                runner.attend(block[0, asked], block[1, local], block[2, local])
        for rows in pack.slices:
            local = slice(rows.start - start, rows.stop - start)
            runner.transform(layer, run.states[rows], block[0, local])
