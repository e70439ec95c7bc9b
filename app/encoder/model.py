"""One open model: texts in, pooled vectors out.

Puts together tokenizer, engine and what the catalogue knows. Pooling happens here, the
Matryoshka cut and the norm in `finish`, so that one run can serve any number of dimensions.
"""

import hashlib
import json
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any

import numpy as np

from app.encoder import pooling
from app.encoder.architecture import Architecture, read_architecture
from app.encoder.catalog import KnownModel, describe
from app.encoder.engine import Engine
from app.encoder.layout import PACK_TOKENS, wave_bytes
from app.encoder.probe import attention_is_linear, lower_token_limit
from app.encoder.session import is_allocation_failure
from app.encoder.tokenizer import TokenizedText, WordPieceTokenizer
from app.encoder.weights import Weights
from app.errors import EncodeMemoryError, InvalidRequestError, ModelUnsupportedError
from app.gguf.sidecar import Sidecar
from app.memory import allocator

FINGERPRINT_VERSION = "v1"
# The two halves of a search share one space; every other task of a prefixed model has its own.
SEARCH_TASKS = ("search_query", "search_document")


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

    def fingerprint(self, dimensions: int | None = None, input_type: str | None = None) -> str:
        """Name of the vector space: equal exactly where vectors may be compared.

        A hash of source tensors, vocabulary, pooling, Matryoshka rule, norm, dimensions and
        prefix scheme; `#task` follows where a prefix puts the vectors into a space of their own.
        """
        size = dimensions or self.dimensions
        named = {
            "tensors": self.content_sha256,
            "vocabulary": self.vocabulary_sha256,
            "pooling": self.architecture.pooling.name,
            "norm_before_cut": self.known.layer_norm_before_cut and size < self.dimensions,
            "normalisation": "l2",
            "dimensions": size,
            "prefix_scheme": self.known.prefix_scheme,
        }
        digest = hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:32]
        if self.known.prefix_scheme == "none" or input_type in SEARCH_TASKS:
            return f"{FINGERPRINT_VERSION}:{digest}"
        return f"{FINGERPRINT_VERSION}:{digest}#{input_type or 'plain'}"

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
        said = []
        if input_type is None and self.known.recommends_input_type:
            types = ", ".join(self.known.task_prefixes)
            said.append(
                f"{self.name} was trained with task prefixes and got none: set input_type to "
                f"one of {types}, or expect worse retrieval"
            )
        # BGE's documents go without a prefix on purpose; elsewhere a missing one is news.
        if input_type and self.known.recommends_input_type and not self.prefix(input_type):
            said.append(f"{self.name} has no prefix for {input_type}; the text went in as it is")
        if dimensions < self.dimensions and dimensions not in self.known.trained_dimensions:
            trained = ", ".join(map(str, self.known.trained_dimensions)) or "none"
            said.append(
                f"{self.name} was not trained for {dimensions} dimensions (trained sizes: "
                f"{trained}); similarity may suffer"
            )
        return said


class EmbeddingModel:
    """An open model. Owns sidecar, engine threads and sessions; `close` gives all back."""

    def __init__(self, name: str, sidecar: Sidecar, *, n_threads: int, exact: bool = False) -> None:
        """Open over a sidecar, which this model closes.

        Raises ModelUnsupportedError when the file is not an encoder that Plimsoll builds.
        """
        metadata = sidecar.header.metadata
        known = describe(metadata)
        architecture = read_architecture(sidecar.header)
        limit = known.token_limit or architecture.context_tokens
        if not known.scales_rotation:
            limit = min(limit, architecture.context_tokens)
        self._linear_attention = attention_is_linear()
        if not self._linear_attention:
            limit = lower_token_limit(limit, architecture.n_heads)
        self.tokenizer = WordPieceTokenizer(metadata)
        self.traits = Traits(
            name=name,
            compute=sidecar.index.compute,
            dimensions=architecture.hidden,
            token_limit=limit,
            known=known,
            architecture=architecture,
            content_sha256=sidecar.index.content_sha256,
            vocabulary_sha256=self.tokenizer.vocabulary_sha256,
        )
        if self.tokenizer.n_words > architecture.vocabulary:
            raise ModelUnsupportedError(
                f"the vocabulary has {self.tokenizer.n_words} words, the embedding table only "
                f"{architecture.vocabulary} rows"
            )
        self.weights_bytes = sidecar.index.weights_bytes
        self._weights = Weights(architecture, sidecar)
        self._n_threads = n_threads
        self._exact = exact
        self._engine = Engine(architecture, self._weights, n_threads=n_threads, exact=exact)
        self._computing = Lock()  # one wave at a time, and no unmapping under it
        self._is_closed = False

    def tokenize(self, texts: Sequence[str], input_type: str | None) -> list[TokenizedText]:
        """Ids with the task's prefix, cut to the token limit."""
        steps = self.tokenize_steps(texts, input_type)
        return [text for finished in steps for text in finished]

    def tokenize_steps(
        self, texts: Iterable[str], input_type: str | None
    ) -> Iterator[list[TokenizedText]]:
        """Like `tokenize`, in steps that each take little time and memory.

        Each gives the texts, in order, that it came to the end of; often none.
        """
        prefix = self.traits.prefix(input_type)
        return self.tokenizer.steps(texts, self.traits.token_limit, prefix)

    def encode(
        self,
        wave: Sequence[np.ndarray],
        *,
        drop_pages: bool = False,
        n_threads: int | None = None,
        pack_tokens: int = PACK_TOKENS,
        kept_layers: int = 0,
    ) -> np.ndarray:
        """Pooled vectors, not normalised: float64 (texts, hidden).

        wave: int64 token ids of each text. A row that comes out with NaN or infinity is
        computed once more, alone; where that fails too it stays so, for the caller to refuse.
        """
        run = partial(
            self._pooled,
            drop_pages=drop_pages,
            n_threads=n_threads,
            pack_tokens=pack_tokens,
            kept_layers=kept_layers,
        )
        with self._computing, _out_of_memory_named():
            vectors = run(wave)
            for index in np.flatnonzero(~np.isfinite(vectors).all(axis=1)).tolist():
                vectors[index] = run([wave[index]])[0]
        return vectors

    def wave_bytes(
        self,
        lengths: Sequence[int],
        *,
        n_threads: int | None = None,
        pack_tokens: int = PACK_TOKENS,
    ) -> int:
        """Peak of the memory that `encode` takes for texts of so many tokens each."""
        return wave_bytes(
            self.traits.architecture,
            lengths,
            n_threads=n_threads or self._n_threads,
            exact=self._exact,
            pack_tokens=pack_tokens,
            linear_attention=self._linear_attention,
        )

    def finish(self, vectors: np.ndarray, dimensions: int) -> np.ndarray:
        """Cut and normalise pooled vectors: float32 (texts, dimensions)."""
        cut = dimensions < self.traits.dimensions
        return pooling.finish(
            vectors, dimensions, norm_first=cut and self.traits.known.layer_norm_before_cut
        )

    def release_memory(self) -> None:
        """Give memory that only a run needs back to the kernel; a closed model has none.

        Raises EncodeMemoryError where not even that can be had.
        """
        with self._computing, _out_of_memory_named():
            if not self._is_closed:
                self._engine.release_memory()
        allocator.release()

    def close(self) -> None:
        """Stop threads, drop sessions and unmap the weights, after the wave under way."""
        with self._computing:
            self._is_closed = True
            self._engine.close()
            self._weights.close()

    def _pooled(self, wave: Sequence[np.ndarray], **options: Any) -> np.ndarray:
        states = self._engine.encode(wave, **options)
        how = self.traits.architecture.pooling
        return np.stack([pooling.pool(rows, how) for rows in states])


@contextmanager
def _out_of_memory_named() -> Iterator[None]:
    """Turn a refused allocation, NumPy's or ONNX Runtime's, into EncodeMemoryError."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, MemoryError) and not is_allocation_failure(error):
            raise
        _empty_frames(error)
        first_line = str(error).partition("\n")[0]
        raise EncodeMemoryError(f"no memory to compute with: {first_line}") from None


def _empty_frames(error: BaseException | None) -> None:
    """Let go of what an error's frames hold: the failed wave's arrays, while memory is short."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
