"""ONNX Runtime sessions over the layer graphs, and how they are run without copies.

The only module that knows ONNX Runtime. Sessions hold no weights, so a whole set costs
a few megabytes and milliseconds. Inputs and outputs are bound by address: ONNX Runtime
reads states and writes results where NumPy arrays already lie.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

# ONNX Runtime's wheels report usage unless told not to before they are imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort

from app.encoder import graph
from app.encoder.architecture import Architecture
from app.encoder.graph import Kernel

Tensors = Mapping[str, "ort.OrtValue"]


def is_allocation_failure(error: Exception) -> bool:
    """Whether ONNX Runtime failed for want of memory; it has no exception of its own for that."""
    words = ("Failed to allocate memory", "bad_alloc", "bad allocation")
    return any(word in str(error) for word in words)


def as_value(array: np.ndarray) -> "ort.OrtValue":
    """Wrap a contiguous array, uncopied; the array must outlive the value."""
    return ort.OrtValue.ortvalue_from_numpy(array)


@cache
def _share_arena() -> None:
    """Give the sessions of this process one arena between them.

    An arena keeps its high-water mark, so it is for runs whose size is bounded: the
    token-wise graphs, which see a slice at most. It grows by what is asked for, not by doubling.
    """
    memory = ort.OrtMemoryInfo(
        "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
    )
    extend_as_requested = 1
    ort.create_and_register_allocator(
        memory, ort.OrtArenaCfg({"arena_extend_strategy": extend_as_requested})
    )


def _open(model: bytes, n_threads: int, *, bounded: bool) -> ort.InferenceSession:
    """`bounded`: whether runs are small enough for what they used to be kept."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = bounded
    options.enable_mem_pattern = False
    if bounded:
        _share_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
    # Between calls a spinning pool would take the cores from the other engine threads.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # The graphs are fused by hand, and the optimizer would turn the swapped kernel back.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # a refused allocation is an exception; its line breaks the log
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class LayerSessions:
    """One set of sessions, each with `n_threads` threads inside an operator."""

    def __init__(self, graphs: "LayerGraphs", n_threads: int) -> None:
        self.n_threads = n_threads
        self.embed_norm = _open(graphs.embed_norm, n_threads, bounded=True)
        self.project = {
            kernel: _open(model, n_threads, bounded=True)
            for kernel, model in graphs.project.items()
        }
        # Attention sees whole texts, whose buffers would stay in the arena.
        self.attend = _open(graphs.attend, n_threads, bounded=False)
        self.transform = {
            kernel: _open(model, n_threads, bounded=True)
            for kernel, model in graphs.transform.items()
        }


@dataclass(frozen=True)
class LayerGraphs:
    """The serialized graphs of one architecture."""

    embed_norm: bytes
    project: Mapping[Kernel, bytes]
    attend: bytes
    transform: Mapping[Kernel, bytes]


def build_graphs(architecture: Architecture) -> LayerGraphs:
    """Write the graphs of `architecture`; the same bytes every time."""
    return LayerGraphs(
        embed_norm=graph.embed_norm_graph(architecture),
        project={kernel: graph.project_graph(architecture, kernel) for kernel in Kernel},
        attend=graph.attend_graph(architecture),
        transform={kernel: graph.transform_graph(architecture, kernel) for kernel in Kernel},
    )


class Runner:
    """Runs the graphs for one engine thread.

    Owns the bindings, which may not be shared between threads; sessions and weights are
    shared and read-only. Arrays are C-contiguous float32 of (tokens, hidden).
    """

    def __init__(
        self, sessions: LayerSessions, layers: Sequence[Tensors], embedding: Tensors
    ) -> None:
        self._sessions = sessions
        self._layers = layers
        self._embedding = embedding
        self._bindings: dict[tuple[str, Kernel, int], ort.IOBinding] = {}

    def embed_norm(self, states: np.ndarray, normed: np.ndarray) -> None:
        """LayerNorm of summed embeddings into `normed`."""
        binding = self._binding("embed_norm", Kernel.PLAIN, -1)
        _bind_input(binding, "states", states)
        _bind_output(binding, "normed", normed)
        self._sessions.embed_norm.run_with_iobinding(binding)

    def project(
        self,
        layer: int,
        kernel: Kernel,
        states: np.ndarray,
        positions: np.ndarray,
        rotation: tuple[np.ndarray, np.ndarray] | None,
        outputs: tuple[np.ndarray, np.ndarray, np.ndarray],
    ) -> None:
        """Queries, keys and values of `states` into `outputs`.

        positions: int64 (tokens,). rotation: cosines and sines, (places, head_size / 2), where
        positions are rotary.
        """
        binding = self._binding("project", kernel, layer)
        _bind_input(binding, "states", states)
        if rotation is not None:
            _bind_input(binding, "positions", positions[np.newaxis])
            _bind_input(binding, "cos", rotation[0])
            _bind_input(binding, "sin", rotation[1])
        for name, output in zip(("queries", "keys", "values"), outputs, strict=True):
            _bind_output(binding, name, output)
        self._sessions.project[kernel].run_with_iobinding(binding)

    def attend(self, queries: np.ndarray, keys: np.ndarray, values: np.ndarray) -> None:
        """Attention of some of a text's tokens to all of them, written over `queries`.

        The operator copies what it reads into another order before it writes.
        """
        binding = self._binding("attend", Kernel.PLAIN, -1)
        for name, array in (("queries", queries), ("keys", keys), ("values", values)):
            _bind_input(binding, name, array[np.newaxis])
        _bind_output(binding, "context", queries[np.newaxis])
        self._sessions.attend.run_with_iobinding(binding)

    def transform(
        self,
        layer: int,
        kernel: Kernel,
        states: np.ndarray,
        context: np.ndarray,
    ) -> None:
        """The rest of the layer, in place.

        The graph's first norm is the last to read `states`, its second norm writes the output:
        so the output may be bound to the same memory.
        """
        binding = self._binding("transform", kernel, layer)
        _bind_input(binding, "states", states)
        _bind_input(binding, "context", context)
        _bind_output(binding, "new_states", states)
        self._sessions.transform[kernel].run_with_iobinding(binding)

    def shrink_arena(self) -> None:
        """Give back what the shared arena holds and nobody uses."""
        options = ort.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        binding = self._binding("embed_norm", Kernel.PLAIN, -1)
        width = self._embedding["token_embd_norm.weight"].shape()[0]
        states = np.zeros((1, width), np.float32)
        normed = np.empty_like(states)
        _bind_input(binding, "states", states)
        _bind_output(binding, "normed", normed)
        self._sessions.embed_norm.run_with_iobinding(binding, options)

    def close(self) -> None:
        """Drop bindings and tensors, so that the memory they point into may go."""
        self._bindings.clear()
        self._layers, self._embedding = (), {}

    def _binding(self, kind: str, kernel: Kernel, layer: int) -> ort.IOBinding:
        key = (kind, kernel, layer)
        binding = self._bindings.get(key)
        if binding is None:
            found = getattr(self._sessions, kind)
            session = found[kernel] if isinstance(found, dict) else found
            binding = self._bindings[key] = session.io_binding()
            tensors = self._layers[layer] if layer >= 0 else self._embedding
            for needed in session.get_inputs():
                value = tensors.get(needed.name) or self._embedding.get(needed.name)
                if value is not None:
                    binding.bind_ortvalue_input(needed.name, value)
        return binding


def _bind_input(binding: ort.IOBinding, name: str, array: np.ndarray) -> None:
    binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def _bind_output(binding: ort.IOBinding, name: str, array: np.ndarray) -> None:
    binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
