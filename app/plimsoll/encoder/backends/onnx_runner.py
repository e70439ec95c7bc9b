"""Run ONNX Runtime sessions without copies, for one thread.

Inputs and outputs are bound by address: it reads states and writes results where NumPy arrays
already lie.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime as ort

from plimsoll.encoder.backends.onnx_runtime import LayerSessions
from plimsoll.encoder.backends.protocol import Rotation

Tensors = Mapping[str, "ort.OrtValue"]


class Runner:
    """Runs the graphs for one engine thread: a LayerRunner.

    Owns the bindings, which may not be shared between threads; sessions and weights are
    shared and read-only. layers: values for the sessions' inputs, where weights are inputs.
    """

    def __init__(
        self, sessions: LayerSessions, layers: Sequence[Tensors], embedding: Tensors
    ) -> None:
        self._sessions = sessions
        self._layers = layers
        self._embedding = embedding
        self._bindings: dict[tuple[str, int], ort.IOBinding] = {}

    def embed_norm(self, states: np.ndarray, normed: np.ndarray) -> None:
        """LayerNorm of summed embeddings into `normed`."""
        binding = self._binding("embed_norm", -1)
        bind_input(binding, "states", states)
        bind_output(binding, "normed", normed)
        self._sessions.embed_norm.run_with_iobinding(binding)

    def project(
        self,
        layer: int,
        states: np.ndarray,
        positions: np.ndarray,
        rotation: Rotation | None,
        outputs: tuple[np.ndarray, np.ndarray, np.ndarray],
    ) -> None:
        """Queries, keys and values of `states` into `outputs`."""
        binding = self._binding("project", layer)
        bind_input(binding, "states", states)
        bind_rotation(binding, positions, rotation)
        for name, output in zip(("queries", "keys", "values"), outputs, strict=True):
            bind_output(binding, name, output)
        self._sessions.project[layer].run_with_iobinding(binding)

    def attend(self, queries: np.ndarray, keys: np.ndarray, values: np.ndarray) -> None:
        """Attention of some of a text's tokens to all of them, written over `queries`.

        The operator copies what it reads into another order before it writes.
        """
        binding = self._binding("attend", -1)
        for name, array in (("queries", queries), ("keys", keys), ("values", values)):
            bind_input(binding, name, array[np.newaxis])
        bind_output(binding, "context", queries[np.newaxis])
        self._sessions.attend.run_with_iobinding(binding)

    def transform(self, layer: int, states: np.ndarray, context: np.ndarray) -> None:
        """The rest of the layer, in place.

        The graph's first norm is the last to read `states`, its second norm writes the output:
        so the output may be bound to the same memory.
        """
        binding = self._binding("transform", layer)
        bind_input(binding, "states", states)
        bind_input(binding, "context", context)
        bind_output(binding, "new_states", states)
        self._sessions.transform[layer].run_with_iobinding(binding)

    def transform_seen(
        self,
        layer: int,
        states: np.ndarray,
        context: np.ndarray,
        middle: np.ndarray,
        active: np.ndarray,
    ) -> None:
        """`transform` over sessions that also give what their products take: a SeenRunner."""
        binding = self._binding("transform", layer)
        bind_output(binding, "middle", middle)
        bind_output(binding, "active", active)
        self.transform(layer, states, context)

    def shrink_arena(self) -> None:
        """Give back what the shared arena holds and no operation uses."""
        options = ort.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        binding = self._binding("embed_norm", -1)
        width = self._embedding["token_embd_norm.weight"].shape()[0]
        states = np.zeros((1, width), np.float32)
        normed = np.empty_like(states)
        bind_input(binding, "states", states)
        bind_output(binding, "normed", normed)
        self._sessions.embed_norm.run_with_iobinding(binding, options)

    def close(self) -> None:
        """Drop bindings, tensors and sessions, so that the memory they point into may go."""
        self._bindings.clear()
        del self._sessions
        self._layers, self._embedding = (), {}

    def _binding(self, kind: str, layer: int) -> ort.IOBinding:
        key = (kind, layer)
        binding = self._bindings.get(key)
        if binding is None:
            found = getattr(self._sessions, kind)
            session = found if layer < 0 else found[layer]
            binding = self._bindings[key] = session.io_binding()
            own = self._layers[layer] if layer >= 0 and self._layers else {}
            for needed in session.get_inputs():
                value = own.get(needed.name) or self._embedding.get(needed.name)
                if value is not None:
                    binding.bind_ortvalue_input(needed.name, value)
        return binding


def bind_input(binding: ort.IOBinding, name: str, array: np.ndarray) -> None:
    """Let a graph read an input where the array lies."""
    binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def bind_output(binding: ort.IOBinding, name: str, array: np.ndarray) -> None:
    """Let a graph write an output where the array lies."""
    binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def bind_rotation(binding: ort.IOBinding, positions: np.ndarray, rotation: Rotation | None) -> None:
    """Bind what turns queries and keys; nothing where positions are learned."""
    if rotation is not None:
        bind_input(binding, "positions", positions[np.newaxis])
        bind_input(binding, "cos", rotation[0])
        bind_input(binding, "sin", rotation[1])
