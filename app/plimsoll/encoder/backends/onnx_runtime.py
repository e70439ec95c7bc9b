"""ONNX Runtime sessions over the layer graphs.

Bits: every row of a product has the same bits beside any other rows, on any number of threads,
except in a matrix of a single row, which takes another path in the library.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import onnxruntime as ort

from plimsoll.encoder.architecture import Architecture
from plimsoll.encoder.backends import onnx_graphs as graph
from plimsoll.encoder.backends.int8_graphs import int8_linear
from plimsoll.encoder.backends.onnx_constants import ROOT

GPU_PROVIDER = "CUDAExecutionProvider"
REFUSED_WORDS = ("Failed to allocate memory", "bad_alloc", "bad allocation", "out of memory")


def runtime_version() -> str:
    """Version of the library that multiplies."""
    return str(ort.__version__)


def is_allocation_failure(error: Exception) -> bool:
    """By its words: ONNX Runtime has no exception of its own for refused memory."""
    return any(word in str(error) for word in REFUSED_WORDS)


def as_value(array: np.ndarray, *, on_gpu: bool = False) -> "ort.OrtValue":
    """Wrap a contiguous array, uncopied, and it must outlive the value; or copy it to the GPU."""
    return ort.OrtValue.ortvalue_from_numpy(array, "cuda" if on_gpu else "cpu", 0)


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


def session_options(n_threads: int, *, bounded: bool) -> ort.SessionOptions:
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
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(ROOT)
    )
    # The graphs are fused by hand.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # a refused allocation is an exception; its line breaks the log
    return options


def open_session(
    model: bytes, n_threads: int, *, bounded: bool = True, gpu_bytes: int = 0
) -> ort.InferenceSession:
    """Open a graph with so many threads inside an operator.

    gpu_bytes: of a GPU's memory that it may take, and then it computes there.
    """
    providers: list[str | tuple[str, dict[str, str]]] = ["CPUExecutionProvider"]
    if gpu_bytes:
        limits = {"gpu_mem_limit": str(gpu_bytes), "arena_extend_strategy": "kSameAsRequested"}
        # TF32 keeps 10 bits of a float32's 23.
        providers.insert(0, (GPU_PROVIDER, limits | {"use_tf32": "0"}))
    options = session_options(n_threads, bounded=bounded)
    return ort.InferenceSession(model, options, providers=providers)


@dataclass(frozen=True)
class LayerGraphs:
    """The serialized graphs of one architecture."""

    embed_norm: bytes
    project: bytes
    attend: bytes
    transform: bytes


def build_graphs(architecture: Architecture, int8: Set[str] = frozenset()) -> LayerGraphs:
    """Write the graphs of `architecture`; the same bytes every time.

    int8: names of the linears whose weights are codes.
    """
    linear = int8_linear(architecture, int8)
    return LayerGraphs(
        embed_norm=graph.embed_norm_graph(architecture),
        project=graph.project_graph(architecture, linear),
        attend=graph.attend_graph(architecture),
        transform=graph.transform_graph(architecture, linear),
    )


def build_whole_graph(architecture: Architecture, int8: Set[str]) -> bytes:
    """Write the graph that takes a text through every layer at once."""
    return graph.whole_graph(architecture, int8_linear(architecture, int8))


@dataclass(frozen=True)
class LayerSessions:
    """One set of sessions. project, transform: of each layer; may be the same for all."""

    embed_norm: ort.InferenceSession
    attend: ort.InferenceSession
    project: Sequence[ort.InferenceSession]
    transform: Sequence[ort.InferenceSession]

    @classmethod
    def over_inputs(
        cls, graphs: LayerGraphs, n_layers: int, n_threads: int, gpu_bytes: int = 0
    ) -> "LayerSessions":
        """Sessions that take their weights as inputs, and serve every layer.

        gpu_bytes: of a GPU's memory that each of them may take; 0 for the CPU.
        """
        return cls.with_layers(
            graphs,
            n_threads,
            [open_session(graphs.project, n_threads, gpu_bytes=gpu_bytes)] * n_layers,
            [open_session(graphs.transform, n_threads, gpu_bytes=gpu_bytes)] * n_layers,
            gpu_bytes,
        )

    @classmethod
    def seen(cls, architecture: Architecture) -> "LayerSessions":
        """Sessions over inputs for a runner that is asked for what the products take."""
        found = cls.over_inputs(build_graphs(architecture), architecture.n_layers, 1)
        model = graph.transform_graph(architecture, seen=("middle", "active"))
        return replace(found, transform=[open_session(model, 1)] * architecture.n_layers)

    @classmethod
    def with_layers(
        cls,
        graphs: LayerGraphs,
        n_threads: int,
        project: Sequence[ort.InferenceSession] = (),
        transform: Sequence[ort.InferenceSession] = (),
        gpu_bytes: int = 0,
    ) -> "LayerSessions":
        """A set over these layers' sessions."""
        return cls(
            embed_norm=open_session(graphs.embed_norm, n_threads, gpu_bytes=gpu_bytes),
            # Attention sees whole texts, whose buffers would stay in the arena.
            attend=open_session(graphs.attend, n_threads, bounded=False, gpu_bytes=gpu_bytes),
            project=project,
            transform=transform,
        )
