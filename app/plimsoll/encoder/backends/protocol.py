"""What a backend does for the engine: the operations of one layer, over NumPy arrays.

The engine lays texts out, counts layers and spreads work over threads; a backend multiplies.
It knows neither texts nor requests, and the engine knows neither sessions nor kernels.

Arrays of states are C-contiguous float32 (tokens, hidden); results are written where the caller
says. A layer is three operations, because attention must see one whole text while the
token-wise parts may run on a slice of a text or on several texts together:

    project   states → queries, keys, values   (rotated where positions are rotary)
    attend    queries, keys, values → context
    transform states, context → states         (output projection, norm, feed-forward, norm)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from plimsoll.encoder.architecture import Architecture

Arrays = Mapping[str, np.ndarray]
"""Weights by GGUF's names (`attn_q.weight` …), a block's own prefix taken off; (n_out, n_in).

A linear in int8 has, instead of its weight, `attn_q.codes`, int8 (n_in, n_out), and
`attn_q.scales`, float32 (n_out,).
"""

CODES_SUFFIX = ".codes"

Rotation = tuple[np.ndarray, np.ndarray]
"""Cosines and sines of every position, each float32 (positions, head_size / 2)."""


class LayerRunner(Protocol):
    """Runs operations, one at a time: an engine thread has a runner of its own.

    Bits: a row's bits do not depend on the other rows of a token-wise operation, if there is more
    than one, nor on threads.
    """

    def embed_norm(self, states: np.ndarray, normed: np.ndarray) -> None:
        """LayerNorm of summed embeddings into `normed`."""

    def project(
        self,
        layer: int,
        states: np.ndarray,
        positions: np.ndarray,
        rotation: Rotation | None,
        outputs: tuple[np.ndarray, np.ndarray, np.ndarray],
    ) -> None:
        """Queries, keys and values of `states` into `outputs`.

        positions: int64 (tokens,), each token's place in its own text. rotation: None where
        positions are learned.
        """

    def attend(self, queries: np.ndarray, keys: np.ndarray, values: np.ndarray) -> None:
        """Attention of some of a text's tokens to all of them, written over `queries`."""

    def transform(self, layer: int, states: np.ndarray, context: np.ndarray) -> None:
        """The rest of the layer, written over `states`."""


class SeenRunner(LayerRunner, Protocol):
    """A LayerRunner that tells what the products of `transform` take."""

    def transform_seen(
        self,
        layer: int,
        states: np.ndarray,
        context: np.ndarray,
        middle: np.ndarray,
        active: np.ndarray,
    ) -> None:
        """`transform`, which also writes what feed-forward takes, and its last product.

        middle: (tokens, hidden). active: (tokens, ffn).
        """


class WholeRunner(Protocol):
    """Takes one whole text through every layer at once, with the bits of the operations."""

    def run(self, states: np.ndarray, positions: np.ndarray, rotation: Rotation | None) -> None:
        """All layers over a text's normed embeddings, written over `states`."""


class LayerPages(Protocol):
    """Looks after the pages of what a backend reads, layer by layer."""

    def check_unchanged(self) -> None:
        """See that the mapped files are as they were. Raises CacheCorruptError."""

    def enter_layer(self, layer: int, *, prefetch: bool, is_scarce: bool = False) -> None:
        """Check a layer's bytes before their first use; with `prefetch`, read the next one's.

        is_scarce: the file cache has no room for what is read once.
        """

    def drop_layer(self, layer: int, *, evict: bool) -> None:
        """Give a layer's pages back; with `evict`, take them out of the file cache too."""


class Backend(Protocol):
    """Computes one model's layers. Owns what it makes of the weights, and its runners.

    `open_runner`, `open_whole`, `prepare`, `release_memory` and `close` are for one thread at a
    time, and the last three for when no runner is at work.
    """

    @property
    def attention_is_linear(self) -> bool:
        """Whether attention takes memory with a text's length, and not with its square."""

    def open_runner(self, n_threads: int) -> LayerRunner:
        """A runner with so many threads inside an operator; runners work side by side."""

    @property
    def pages(self) -> LayerPages | None:
        """Who looks after the pages that it reads, where these are not the weights' own."""

    def open_whole(self, n_threads: int) -> WholeRunner | None:
        """A runner for a lone text, with so many threads; None where there is none, or no memory.

        For one run: opening another may close it.
        """

    def prepare(self, slice_tokens: int) -> None:
        """A run begins, whose token-wise operations take at most so many tokens at once."""

    def release_memory(self) -> None:
        """Give back memory that only runs need."""

    def is_allocation_failure(self, error: Exception) -> bool:
        """Whether this error of an operation says that memory was refused."""

    def close(self) -> None:
        """Close runners and drop every view of the weights, which are unmapped next."""


def int8_linears(arrays: Arrays) -> frozenset[str]:
    """Names of the linears that have codes instead of a weight."""
    return frozenset(
        name.removesuffix(CODES_SUFFIX) for name in arrays if name.endswith(CODES_SUFFIX)
    )


OpenBackend = Callable[[Architecture, Arrays, Sequence[Arrays]], Backend]
"""Opens a backend over an architecture, the first norm's weights, and those of each layer.

The arrays are views of mapped weights, not yet verified: to be read when an operation runs, and
to be dropped in `close`.
"""
