"""One open model: texts in, pooled vectors out.

Puts together tokenizer, engine and what the catalogue knows. Pooling happens here, the
Matryoshka cut and the norm in `finish`, so that one run can serve any number of dimensions.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from threading import RLock
from typing import Any

import numpy as np

from plimsoll.encoder import pooling
from plimsoll.encoder.architecture import Architecture
from plimsoll.encoder.backends.protocol import OpenBackend
from plimsoll.encoder.description import read_description
from plimsoll.encoder.known_models import KnownModel
from plimsoll.encoder.layout import FLOAT_BYTES, PACK_TOKENS, run_bytes
from plimsoll.encoder.pooling import RowForm
from plimsoll.encoder.quantization.codes_file import CodesFile, CodesIndex
from plimsoll.encoder.refused_memory import refused_memory_named
from plimsoll.encoder.roads import open_roads
from plimsoll.encoder.token_limit import token_limit
from plimsoll.encoder.token_spans import TokenSpans, token_spans_steps
from plimsoll.encoder.tokenizer import Cut, TokenizedText, WordPieceTokenizer
from plimsoll.errors import InvalidRequestError
from plimsoll.machine import allocator
from plimsoll.sidecar.sidecar import Sidecar

log = logging.getLogger(__name__)

FINGERPRINT_VERSION = "v1"
# What a fingerprint leaves unsaid: the numbers that Nomic's models and the built-in one share.
# A model with another number says it, so that equal tensors read differently have two names.
UNSAID_HEADS = 12
UNSAID_EPS = np.float32(1e-12)
UNSAID_ROPE_BASE = 1000.0
UNSAID_TRAINED_TOKENS = 2048
# The two halves of a search share one space; every other task of a prefixed model has its own.
SEARCH_TASKS = ("search_query", "search_document")
# The layer that computes and the one that is read ahead.
LAYERS_UNDER_WAY = 2
# Texts that come as ids and are looked at together.
IDS_STEP_TEXTS = 64


@dataclass(frozen=True)
class Traits:
    """What a client may know about a model without running it."""

    name: str
    compute: str
    dimensions: int
    token_limit: int
    known: KnownModel
    architecture: Architecture
    content_sha256: str
    vocabulary_sha256: str
    notes: tuple[str, ...] = ()  # what the file leaves open, to be told with every use
    codes: CodesIndex | None = None  # of what is computed in int8
    compute_reason: str | None = None  # why it is computed so, where that was not the operator's
    # Every answer names its space; by dimensions and task.
    _named: dict[tuple[int, str | None], str] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def fingerprint(self, dimensions: int | None = None, input_type: str | None = None) -> str:
        """Name of the vector space: equal exactly where vectors may be compared."""
        space = (dimensions or self.dimensions, input_type)
        if space not in self._named:
            self._named[space] = self._name_of(*space)
        return self._named[space]

    def _name_of(self, size: int, input_type: str | None) -> str:
        """Name a space, once.

        A hash of source tensors, vocabulary, normaliser, rotation, pooling, Matryoshka rule,
        norm, dimensions and prefix scheme, and of codes where there are any; `#task` follows where
        a prefix puts the vectors into a space of their own.
        """
        named = {
            "tensors": self.content_sha256,
            "vocabulary": self.vocabulary_sha256,
            "pooling": self.architecture.pooling.name,
            "norm_before_cut": self.known.layer_norm_before_cut and size < self.dimensions,
            "normalisation": "l2",
            "dimensions": size,
            "prefix_scheme": self.known.prefix_scheme,
            **self._unusual_numbers(),
        }
        if self.codes is not None:
            named["int8"] = self.codes.sha256
        digest = hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:32]
        if self.known.prefix_scheme == "none" or input_type in SEARCH_TASKS:
            return f"{FINGERPRINT_VERSION}:{digest}"
        return f"{FINGERPRINT_VERSION}:{digest}#{input_type or 'plain'}"

    def _unusual_numbers(self) -> dict[str, float]:
        """Numbers of the file that change vectors, where they are not the unsaid ones."""
        shape = self.architecture
        numbers: list[tuple[str, float, float]] = [
            ("heads", shape.n_heads, UNSAID_HEADS),
            ("layer_norm_eps", float(np.float32(shape.layer_norm_eps)), float(UNSAID_EPS)),
            ("rope_base", shape.rope_base or UNSAID_ROPE_BASE, UNSAID_ROPE_BASE),
            ("rope_factor", shape.rope_factor, 1.0),
        ]
        if self.known.scales_rotation:
            numbers.append(("trained_tokens", shape.context_tokens, UNSAID_TRAINED_TOKENS))
        return {name: number for name, number, unsaid in numbers if number != unsaid}

    def prefix(self, input_type: str | None) -> str:
        """What stands before a text of this type."""
        return self.known.task_prefixes.get(input_type, "") if input_type else ""

    def check_dimensions(self, dimensions: int | None) -> int:
        """The number of values to return. Raises InvalidRequestError when out of range."""
        if dimensions is None:
            return self.dimensions
        if not 1 <= dimensions <= self.dimensions:
            raise InvalidRequestError(
                f"dimensions is {dimensions}; {self.name} gives 1 to {self.dimensions}",
                param="dimensions",
            )
        return dimensions

    def warnings(self, dimensions: int, input_type: str | None) -> list[str]:
        """What a client should be told about this use of the model."""
        said = list(self.notes)
        if input_type is None and self.known.recommends_input_type:
            types = ", ".join(self.known.task_prefixes)
            said.append(
                f"{self.name} was trained with task prefixes and got none: set input_type to "
                f"one of {types}, or expect worse retrieval"
            )
        if input_type and not self.known.has_rule(input_type):
            said.append(f"{self.name} has no prefix for {input_type}; the text went in as it is")
        if dimensions < self.dimensions and dimensions not in self.known.trained_dimensions:
            trained = ", ".join(map(str, self.known.trained_dimensions)) or "none"
            said.append(
                f"{self.name} was not trained for {dimensions} dimensions (trained sizes: "
                f"{trained}); similarity may suffer"
            )
        return said


@dataclass(frozen=True, slots=True)
class WeightSizes:
    """What a model's weights take, and how much of it each of its layers."""

    weights_bytes: int
    layer_bytes: int
    n_layers: int

    def fitting_layers(self, room_bytes: int) -> int:
        """How many layers may stay beside those under way."""
        n_layers = room_bytes // max(1, self.layer_bytes)
        if n_layers >= self.n_layers:
            return self.n_layers
        return max(0, n_layers - LAYERS_UNDER_WAY)


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
