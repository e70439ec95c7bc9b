"""One open model: texts in, pooled vectors out.

Puts together tokenizer, engine and what the catalogue knows. Pooling happens here, the
Matryoshka cut and the norm in `finish`, so that one run can serve any number of dimensions.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import islice
from threading import RLock
from typing import Any

import numpy as np

from plimsoll.encoder import pooling
from plimsoll.encoder.backends.protocol import OpenBackend
from plimsoll.encoder.description import read_description
from plimsoll.encoder.layout import FLOAT_BYTES, PACK_TOKENS, run_bytes
from plimsoll.encoder.pooling import RowForm
from plimsoll.encoder.quantization.codes_file import CodesFile
from plimsoll.encoder.refused_memory import refused_memory_named
from plimsoll.encoder.roads import open_roads
from plimsoll.encoder.token_limit import token_limit
from plimsoll.encoder.token_spans import TokenSpans, token_spans_steps
from plimsoll.encoder.tokenizer import Cut, TokenizedText, WordPieceTokenizer
from plimsoll.encoder.traits import Traits
from plimsoll.encoder.weight_sizes import WeightSizes
from plimsoll.machine import allocator
from plimsoll.sidecar.sidecar import Sidecar

log = logging.getLogger(__name__)

# Texts that come as ids and are looked at together.
IDS_STEP_TEXTS = 64


class EmbeddingModel:
    """An open model. Owns sidecar, codes, engine threads and backends; `close` gives all back."""

    def __init__(
        self,
        name: str,
        sidecar: Sidecar,
        open_backends: Sequence[OpenBackend],
        *,
        n_threads: int,
        codes: CodesFile | None = None,
        compute_reason: str | None = None,
    ) -> None:
        """Open over a sidecar and codes, which `close` closes; where opening fails they stay open.

        open_backends: one for each road of `road_plan`. codes: compute in int8 what they stand for.
        Raises ModelUnsupportedError when the file is not an encoder that Plimsoll builds.
        """
        described = read_description(sidecar.header)
        known, architecture = described.known, described.architecture
        for warning in described.warnings:
            log.warning("%s", warning)
        self.tokenizer = WordPieceTokenizer(described.vocabulary)
        self._sidecar = sidecar
        self._codes = codes
        self._n_threads = n_threads
        self._roads = open_roads(architecture, sidecar, codes, open_backends, n_threads=n_threads)
        self._backend = self._roads[0].backend
        self.traits = Traits(
            name=name,
            compute="int8" if codes else sidecar.index.compute,
            dimensions=architecture.hidden,
            token_limit=token_limit(
                known, architecture, linear_attention=self._backend.attention_is_linear
            ),
            known=known,
            architecture=architecture,
            content_sha256=sidecar.index.content_sha256,
            vocabulary_sha256=described.vocabulary.sha256,
            notes=described.warnings,
            codes=codes.index if codes else None,
            compute_reason=compute_reason,
        )
        self.weights_bytes = sidecar.index.weights_bytes
        if codes is not None:
            self.weights_bytes += codes.n_bytes
            if len(self._roads) == 1:  # no other reads in float32 what codes stand for
                self.weights_bytes -= self._roads[0].weights.coded_bytes
        self._n_empty_tokens: dict[str | None, int] = {}  # by input type
        # One run at a time, with those between its layers, and no unmapping under it.
        self._computing = RLock()
        self._is_closed = False

    @property
    def sizes(self) -> WeightSizes:
        """Of the weights, and of one layer; the rest is the table of the vocabulary."""
        shape = self.traits.architecture
        table_bytes = FLOAT_BYTES * shape.vocabulary * shape.hidden
        layers_bytes = max(0, self.weights_bytes - table_bytes)
        return WeightSizes(self.weights_bytes, layers_bytes // shape.n_layers, shape.n_layers)

    def tokenize(self, texts: Sequence[str], input_type: str | None) -> list[TokenizedText]:
        """Ids with the task's prefix, cut to the token limit."""
        steps = self.tokenize_steps(texts, input_type)
        return [text for finished in steps for text in finished]

    def n_empty_tokens(self, input_type: str | None) -> int:
        """Tokens of a text that says nothing: the two ends, and those of the task's prefix."""
        if input_type not in self._n_empty_tokens:
            (empty,) = self.tokenize([""], input_type)
            self._n_empty_tokens[input_type] = empty.n_tokens
        return self._n_empty_tokens[input_type]

    def tokenize_steps(
        self, texts: Iterable[str], input_type: str | None, cut: Cut = "end"
    ) -> Iterator[list[TokenizedText]]:
        """Like `tokenize`, in steps that each take little time and memory.

        Each gives the texts, in order, that it came to the end of; often none.
        """
        prefix = self.traits.prefix(input_type)
        return self.tokenizer.steps(texts, self.traits.token_limit, prefix, cut)

    def token_spans_steps(
        self, texts: Iterable[str], input_type: str | None, *, with_ends: bool
    ) -> Iterator[list[TokenSpans]]:
        """Every token of each text with its place, uncut, in steps as of `tokenize_steps`."""
        prefix = self.traits.prefix(input_type)
        return token_spans_steps(self.tokenizer, texts, prefix, with_ends=with_ends)

    def id_steps(
        self, texts: Iterable[Sequence[int]], input_type: str | None, cut: Cut = "end"
    ) -> Iterator[list[TokenizedText]]:
        """The same of texts that their sender has tokenized, IDS_STEP_TEXTS a step.

        Raises InvalidRequestError for an id that is not in the vocabulary.
        """
        prefix, remaining = self.traits.prefix(input_type), iter(texts)
        while some := list(islice(remaining, IDS_STEP_TEXTS)):
            limit = self.traits.token_limit
            yield [self.tokenizer.take_ids(ids, limit, prefix, cut) for ids in some]

    def encode(
        self,
        texts: Sequence[np.ndarray],
        *,
        drop_pages: bool = False,
        n_threads: int | None = None,
        pack_tokens: int = PACK_TOKENS,
        kept_layers: int | None = None,
        between_layers: Callable[[], None] | None = None,
    ) -> np.ndarray:
        """Pooled vectors of one run, not normalised: float64 (texts, hidden).

        texts: int64 token ids of each text. A row that comes out with NaN or infinity is
        computed once more, alone; where that fails too it stays so, for the caller to refuse.
        between_layers: called while no layer is under way; it may encode other texts, and what it
        raises ends this run.
        """
        pooled = partial(
            self._pooled,
            drop_pages=drop_pages,
            n_threads=n_threads,
            pack_tokens=pack_tokens,
            kept_layers=kept_layers,
            between_layers=between_layers,
        )
        with self._computing, self._refused_memory_named():
            vectors = pooled(texts)
            for index in np.flatnonzero(~np.isfinite(vectors).all(axis=1)).tolist():
                vectors[index] = pooled([texts[index]])[0]
        return vectors

    def token_states(self, texts: Sequence[np.ndarray], **options: Any) -> list[np.ndarray]:
        """States of every token of each text: float32 (tokens, hidden).

        Takes and does as `encode`, but for the pooling.
        """
        with self._computing, self._refused_memory_named():
            found = dict(self._each_states(texts, **options))
            for index in [at for at, states in found.items() if not np.isfinite(states).all()]:
                ((_, found[index]),) = self._each_states([texts[index]], **options)
        # Views of what the run had as a whole would keep all of it.
        return [found[index].copy() for index in range(len(texts))]

    def run_bytes(
        self,
        lengths: Sequence[int],
        *,
        n_threads: int | None = None,
        pack_tokens: int = PACK_TOKENS,
    ) -> int:
        """Peak of the memory that `encode` takes for texts of so many tokens each."""
        return run_bytes(
            self.traits.architecture,
            lengths,
            n_threads=n_threads or self._n_threads,
            pack_tokens=pack_tokens,
            linear_attention=self._backend.attention_is_linear,
        )

    def finish(self, vectors: np.ndarray, dimensions: int, form: RowForm = "unit") -> np.ndarray:
        """Cut and normalise pooled vectors: float32 (texts, dimensions)."""
        norm_first = dimensions < self.traits.dimensions and self.traits.known.layer_norm_before_cut
        return pooling.finish(vectors, dimensions, norm_first=norm_first, form=form)

    def check_unchanged(self) -> None:
        """See that no file that the model has mapped was written to or cut; also beside a run.

        Raises CacheCorruptError; the caller closes the model and opens it anew.
        """
        for road in self._roads:
            road.engine.check_unchanged()

    def release_memory(self) -> None:
        """Give memory that only a run needs back to the kernel; a closed model has none.

        Raises EncodeMemoryError where not even that can be had.
        """
        with self._computing, self._refused_memory_named():
            if not self._is_closed:
                for road in self._roads:
                    road.backend.release_memory()
        allocator.release()

    def close(self) -> None:
        """Stop threads, close the backend and unmap the weights, after the run under way."""
        with self._computing:
            self._is_closed = True
            for road in self._roads:
                road.close()
            if self._codes is not None:
                self._codes.close()
            self._sidecar.close()

    def _pooled(self, texts: Sequence[np.ndarray], **options: Any) -> np.ndarray:
        how = self.traits.architecture.pooling
        vectors = np.empty((len(texts), self.traits.dimensions), np.float64)
        for index, states in self._each_states(texts, **options):
            vectors[index] = pooling.pool(states, how)
        return vectors

    def _each_states(
        self, texts: Sequence[np.ndarray], **options: Any
    ) -> Iterator[tuple[int, np.ndarray]]:
        """States of each text by its index, road after road."""
        left = list(range(len(texts)))
        for road in self._roads:
            taken = [index for index in left if len(texts[index]) >= road.least_tokens]
            left = [index for index in left if len(texts[index]) < road.least_tokens]
            if taken:
                states = road.engine.encode([texts[index] for index in taken], **options)
                yield from zip(taken, states, strict=True)

    def _refused_memory_named(self) -> AbstractContextManager[None]:
        return refused_memory_named(self._backend.is_allocation_failure, "to compute")
