"""Weights as constants whose packed forms lie in a file: how they are opened, and their pages.

Sessions over them hold no weights of their own: ONNX Runtime maps the file of blobs, and the
plain weights only while a session opens. A blob that it does not find it makes on the heap, in
silence; so the process's memory is looked at after the first set has opened.
"""

import mmap
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import onnxruntime as ort

from plimsoll.encoder.backends.layer_sessions import MOST_OPENING, LayerPair, LazyLayers
from plimsoll.encoder.backends.onnx_constants import PlainWeights, with_constants
from plimsoll.encoder.backends.onnx_runtime import (
    LayerGraphs,
    LayerSessions,
    is_allocation_failure,
    open_session,
)
from plimsoll.encoder.backends.protocol import Arrays
from plimsoll.errors import PackingError
from plimsoll.machine import allocator, mappings
from plimsoll.machine.cpu import available_cores
from plimsoll.machine.memory import own_anonymous_bytes
from plimsoll.sidecar.packed import Blob, PackedFile

# What of the first layer's blobs may be found on the heap after opening.
LOST_RATIO = 0.5
LOST_BYTES = 4 << 20
# Requests for other models allocate beside it; hardly every time.
OPENING_TRIES = 3


def graph_names(layer: int) -> tuple[str, str]:
    """Names of a layer's graphs that have packed weights, in a packed file."""
    return f"{layer}.project", f"{layer}.transform"


def whole_weights(layers: Sequence[Arrays]) -> Arrays:
    """All layers' weights by the names that the graph over the whole model has for them."""
    return {f"{i}.{name}": array for i, own in enumerate(layers) for name, array in own.items()}


class PackedWeights:
    """Owns the packed file of one open model; makes sessions over it, and looks after its pages.

    Shares the plain weights, which are only read while sessions open.
    """

    def __init__(self, file: PackedFile, plain: PlainWeights) -> None:
        self._file = file
        self._plain = plain
        self._path = file.path.resolve()  # as the kernel's list of mappings has it
        self._layers: LazyLayers | None = None
        self._n_layers = 0
        self._verified: set[int] = set()  # layers

    def open_layers(self, graphs: LayerGraphs, layers: Sequence[Arrays]) -> LayerSessions:
        """A session for each layer and operation, of one thread each; the first opens now.

        Raises PackingError where its blobs were not found, and CacheCorruptError for damage.
        """
        self._n_layers = len(layers)
        # No closure: frames of an error that are cleared still hold their function, and so views.
        open_layer = partial(self._open_layer, graphs, layers)
        self._verify(0)
        first = self._open_first(open_layer)
        self.check_paths()
        self._layers = LazyLayers(first, len(layers), self._verify_opening, open_layer)
        project, transform = self._layers.parts()
        return LayerSessions.with_layers(graphs, 1, project, transform)

    def open_whole(
        self, model: bytes, layers: Sequence[Arrays], n_threads: int
    ) -> ort.InferenceSession:
        """One session over the whole model, whose layers have been verified."""
        blobs = [
            blob
            for layer in range(len(layers))
            for name in graph_names(layer)
            for blob in self._file.blobs(name)
        ]
        session = open_session(self._model(model, whole_weights(layers), blobs), n_threads)
        allocator.release()
        return session

    def verify_all(self) -> None:
        """Check every layer. Raises CacheCorruptError.

        Apart from opening, so that the error's frames hold no views of weights: they would keep
        the damaged file from being closed.
        """
        with ThreadPoolExecutor(min(MOST_OPENING, available_cores())) as verifying:
            list(verifying.map(self._verify, range(self._n_layers)))
        self.check_paths()

    def check_paths(self) -> None:
        """See that what sessions open by its path is what is mapped. Raises CacheCorruptError.

        Asked after they have opened: another process may remove the files, and make them anew.
        """
        self._plain.check_paths()
        self._file.check_at_path()

    def check_unchanged(self) -> None:
        """See that the packed file is as it was when it was mapped. Raises CacheCorruptError."""
        self._file.check_unchanged()

    def enter_layer(self, layer: int, *, prefetch: bool, is_scarce: bool = False) -> None:
        """Check a layer before its first use; with `prefetch`, read the next one's blobs.

        is_scarce: its sessions open now and alone, and what that reads leaves the cache again.
        """
        if is_scarce and self._layers is not None and layer not in self._layers:
            self._layers.open(layer)
            self._plain.evict(layer)
        if prefetch:
            following = (layer + 1) % self._n_layers
            self._file.advise(graph_names(following), mmap.MADV_WILLNEED)
        self._verify(layer)

    def drop_layer(self, layer: int, *, evict: bool) -> None:
        """Give the pages of a layer's blobs back to the kernel, in every session's mapping."""
        names = graph_names(layer)
        for start, stop in self._file.runs(names):
            mappings.drop_pages(self._path, start, stop)
        self._file.advise(names, mmap.MADV_DONTNEED)
        if evict:
            self._file.evict(names)

    def close(self) -> None:
        """Drop the layers' sessions, unlock and unmap."""
        with mappings.unmapping():
            if self._layers is not None:
                self._layers.close()
                self._layers = None
            self._file.close()

    def _verify(self, layer: int) -> None:
        """Check what a session of this layer reads when it opens, and when it runs."""
        if layer not in self._verified:  # every run asks
            self._plain.verify(layer)
            self._file.verify(graph_names(layer))
            self._verified.add(layer)

    def _verify_opening(self, layer: int) -> None:
        """Check what a session of this layer reads when it opens."""
        self._plain.verify(layer)
        self.check_paths()

    def _model(
        self, model: bytes, weights: Mapping[str, np.ndarray], blobs: Sequence[Blob]
    ) -> bytes:
        return with_constants(model, weights, self._plain, self._path, blobs)

    def _open_layer(self, graphs: LayerGraphs, layers: Sequence[Arrays], layer: int) -> LayerPair:
        project, transform = graph_names(layer)
        return (
            self._open_graph(project, graphs.project, layers[layer]),
            self._open_graph(transform, graphs.transform, layers[layer]),
        )

    def _open_graph(self, name: str, model: bytes, weights: Arrays) -> ort.InferenceSession:
        return open_session(self._model(model, weights, self._file.blobs(name)), 1)

    def _open_first(self, open_layer: Callable[[int], LayerPair]) -> LayerPair:
        """Open the first layer, and see that its blobs were mapped and not made on the heap."""
        blob_bytes = sum(blob.n_bytes for name in graph_names(0) for blob in self._file.blobs(name))
        for _ in range(OPENING_TRIES):
            allocator.release()  # free memory of the heap would hide what is packed there
            before = own_anonymous_bytes()
            try:
                first = open_layer(0)
            except Exception as error:  # ONNX Runtime's own classes, one for each status
                if is_allocation_failure(error):
                    raise
                raise PackingError(f"ONNX Runtime does not take packed weights: {error}") from error
            allocator.release()
            grown = own_anonymous_bytes() - before
            if grown <= max(LOST_BYTES, LOST_RATIO * blob_bytes):
                return first
            with mappings.unmapping():
                del first
        raise PackingError(
            f"ONNX Runtime did not take the packed weights from {self._path}: "
            f"{grown >> 20} MiB of the {blob_bytes >> 20} MiB of a layer are on the heap"
        )
