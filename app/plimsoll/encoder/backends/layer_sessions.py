"""Sessions of the layers, opened when a run first needs more than one layer's."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TypeAlias

import onnxruntime as ort

from plimsoll.machine import allocator
from plimsoll.machine.cpu import available_cores

# Sessions that open at once: each packs a matrix of its own on the heap, in passing.
MOST_OPENING = 2

LayerPair: TypeAlias = tuple[ort.InferenceSession, ort.InferenceSession]
"""A layer's sessions: project and transform."""


class LazyLayers:
    """Owns the layers' sessions. The first is open already, the others come together, or in turn.

    They are not opened while layers run: what opening takes for a moment would come on top of what
    admission has predicted for the run.
    """

    def __init__(
        self,
        first: LayerPair,
        n_layers: int,
        verify: Callable[[int], None],
        open_layer: Callable[[int], LayerPair],
    ) -> None:
        """verify: checks what opening a layer reads, which is in memory then; before and after.

        A weight that is damaged or another has a packed form that is not there: it would be packed
        on the heap, and its vectors would look like any others.
        """
        self.n_layers = n_layers
        self._verify = verify
        self._open_layer = open_layer
        self._open: dict[int, LayerPair] = {0: first}
        self._opening = Lock()

    def parts(self) -> tuple[Sequence[ort.InferenceSession], Sequence[ort.InferenceSession]]:
        """The sessions of either operation, by layer."""
        return _Part(self, 0), _Part(self, 1)

    def pair(self, layer: int) -> LayerPair:
        """A layer's sessions; opens all where they are not, and raises what kept them from it."""
        if layer not in self._open:
            with self._opening:
                self._open_all()
        return self._open[layer]

    def __contains__(self, layer: int) -> bool:
        """Whether a layer's are open."""
        return layer in self._open

    def open(self, layer: int) -> None:
        """Open this one alone, so that no more is read at once."""
        with self._opening:
            if layer not in self._open:
                self._open[layer] = self._open_one(layer)
        allocator.release()

    def close(self) -> None:
        """Drop the sessions, and what opens them with its views of the weights."""
        self._open.clear()
        del self._open_layer

    def _open_all(self) -> None:
        closed = [layer for layer in range(self.n_layers) if layer not in self._open]
        if not closed:  # another thread was first
            return
        with ThreadPoolExecutor(min(MOST_OPENING, available_cores())) as threads:
            for layer, pair in zip(closed, threads.map(self._open_one, closed), strict=True):
                self._open[layer] = pair
        allocator.release()

    def _open_one(self, layer: int) -> LayerPair:
        # Apart from opening: what is raised here must hold no views of weights in its frames,
        # which would keep the damaged file from being closed.
        self._verify(layer)
        pair = self._open_layer(layer)
        self._verify(layer)  # again: a session opens what lies at a path at that moment
        return pair


class _Part(Sequence[ort.InferenceSession]):
    """One of each layer's two sessions."""

    def __init__(self, layers: LazyLayers, place: int) -> None:
        self._layers = layers
        self._place = place

    def __len__(self) -> int:
        return self._layers.n_layers

    def __iter__(self) -> Iterator[ort.InferenceSession]:
        return (self[layer] for layer in range(len(self)))

    def __getitem__(self, layer: int) -> ort.InferenceSession:  # type: ignore[override]
        return self._layers.pair(layer)[self._place]
