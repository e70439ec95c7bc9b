"""Vectors of texts that were asked for before, in bounded memory; off by default.

Keyed by fingerprint and token ids, which are the text with its prefix, as the model sees it. The
texts themselves are not kept. What it holds is memory of the process, and so counts in the
budget; it is the first to be given up (policy/lines.py, reclaim.py).
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from plimsoll.encoder.model import EmbeddingModel
from plimsoll.encoder.pooling import RowForm
from plimsoll.policy.priority import Priority
from plimsoll.serving.executor import RunExecutor
from plimsoll.serving.rows import Row, digest_of
from plimsoll.telemetry.engine import EngineMetrics, Source

# Of an entry beside its values: array, key, and their places in the dictionary. Measured.
ENTRY_BYTES = 400


class VectorCache:
    """Owns rows by their keys, the one that was asked for longest ago first. On the event loop."""

    def __init__(self, metrics: EngineMetrics, *, most_bytes: int) -> None:
        self._metrics = metrics
        self._most_bytes = most_bytes
        self._limit_bytes = most_bytes
        self._rows: OrderedDict[Hashable, Row] = OrderedDict()
        self.n_bytes = 0

    def find(self, key: Hashable) -> Row | None:
        """Return a copy of the row, where there is one."""
        row = self._rows.get(key)
        if row is None:
            return None
        self._rows.move_to_end(key)
        return row.copy()

    def keep(self, key: Hashable, row: Row) -> None:
        """Keep a copy of a row, unless it could not be sent."""
        if key in self._rows or not np.isfinite(row).all():
            return
        self._rows[key] = row.copy()  # the row itself may be part of a whole run's
        self.n_bytes += row.nbytes + ENTRY_BYTES
        self._shrink()

    def limit_to(self, share: float) -> None:
        """Take no more than this share of its size from now on."""
        self._limit_bytes = round(share * self._most_bytes)
        self._shrink()

    def _shrink(self) -> None:
        while self.n_bytes > self._limit_bytes:
            _, row = self._rows.popitem(last=False)
            self.n_bytes -= row.nbytes + ENTRY_BYTES
        self._metrics.cached(self.n_bytes)


class CachedEncoder:
    """An executor whose rows are looked up first, and kept; shares executor and cache."""

    def __init__(self, executor: RunExecutor, cache: VectorCache, metrics: EngineMetrics) -> None:
        self._executor = executor
        self._cache = cache
        self._metrics = metrics

    async def encode(
        self,
        model: EmbeddingModel,
        texts: Sequence[np.ndarray],
        dimensions: int,
        on_row: Callable[[int], None],
        priority: Priority,
        form: RowForm = "unit",
    ) -> list[Row]:
        """As the executor's; `on_row` is told of texts that are found at once.

        What few ask for, and of another form than a unit vector, is not kept.
        """
        if form != "unit":
            return await self._executor.encode(model, texts, dimensions, on_row, priority, form)
        fingerprint = model.traits.fingerprint(dimensions)
        keys = [(fingerprint, digest_of(ids)) for ids in texts]
        found = [self._cache.find(key) for key in keys]
        missing = [ids for ids, row in zip(texts, found, strict=True) if row is None]
        for ids, row in zip(texts, found, strict=True):
            if row is not None:
                on_row(len(ids))
        self._metrics.found(Source.CACHE, len(texts) - len(missing))
        computed = await self._executor.encode(model, missing, dimensions, on_row, priority)
        rest = iter(computed)
        rows = [next(rest) if row is None else row for row in found]
        for key, row, cached in zip(keys, rows, found, strict=True):
            if cached is None:
                self._cache.keep(key, row)
        return rows
