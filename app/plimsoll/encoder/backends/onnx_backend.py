"""ONNX Runtime as a backend, over weights that are constants or inputs of its graphs.

With packed weights each layer has sessions of its own, of one thread; threads share a pack by its
rows, and a lone text passes one session over the whole model. Without them the weights are inputs,
bound where they are mapped and packed anew at every call; one set of sessions serves every layer,
and there is a set for each number of threads inside an operator, made when first asked for.
A linear that has codes among a layer's arrays is computed in int8; so it is in every layer.
"""

from collections.abc import Sequence

from plimsoll.encoder.architecture import Architecture
from plimsoll.encoder.backends.onnx_probe import attention_is_linear
from plimsoll.encoder.backends.onnx_runner import Runner
from plimsoll.encoder.backends.onnx_runtime import (
    LayerSessions,
    as_value,
    build_graphs,
    build_whole_graph,
    is_allocation_failure,
)
from plimsoll.encoder.backends.packed_runners import SharedRunner, WholeModelRunner
from plimsoll.encoder.backends.packed_weights import PackedWeights
from plimsoll.encoder.backends.protocol import Arrays, LayerRunner, SeenRunner, int8_linears

# Sessions over the whole model that stay open, of about 1 MiB each: parallelism goes to and fro.
MOST_WHOLE = 2


class OnnxBackend:
    """Owns sessions, runners, the values over the weights, and the packed weights.

    Its token-wise sessions share an arena, which grows to the largest slice that it has seen.
    """

    def __init__(
        self,
        architecture: Architecture,
        embedding: Arrays,
        layers: Sequence[Arrays],
        packed: PackedWeights | None = None,
        gpu_bytes: int = 0,
    ) -> None:
        """Open. Raises PackingError where the packed weights are not taken as they are.

        gpu_bytes: of a GPU's memory that each session may take, and then the weights, which are
        not packed, are copied there.
        """
        self.attention_is_linear = attention_is_linear()
        self.pages = packed
        self._architecture = architecture
        self._arrays = layers
        self._gpu_bytes = gpu_bytes
        self._embedding = self._values(embedding)
        self._int8 = int8_linears(layers[0])
        self._graphs = build_graphs(architecture, self._int8)
        self._sessions: dict[int, LayerSessions] = {}  # by threads inside an operator
        self._layers: list[dict[str, object]] = []
        if packed is None:
            self._layers = [self._values(arrays) for arrays in layers]
        else:
            self._sessions[1] = packed.open_layers(self._graphs, layers)
        self._runners: list[Runner | SharedRunner] = []
        self._whole: dict[int, WholeModelRunner] = {}  # by threads, the oldest first
        self._arena_keeper = self._runner(1)
        self._arena_tokens = 0  # largest slice since the arena was emptied

    def open_runner(self, n_threads: int) -> LayerRunner:
        """A runner over the sessions with so many threads."""
        if self.pages is None or n_threads == 1:
            return self._runner(n_threads)
        parts = [self._runner(1) for _ in range(n_threads)]
        runner = SharedRunner(self._runner(n_threads), parts)
        self._runners.append(runner)
        return runner

    def open_seen_runner(self) -> SeenRunner:
        """A runner that tells what products take, where weights are inputs in float32."""
        runner = Runner(LayerSessions.seen(self._architecture), self._layers, self._embedding)
        self._runners.append(runner)
        return runner

    def open_whole(self, n_threads: int) -> WholeModelRunner | None:
        """A runner over the whole model; none where weights are inputs.

        Where memory to open one is refused, one with other threads that is open serves, or the
        layers' sessions: a run's last try, with one thread, is made when memory is short.
        """
        if self.pages is None:
            return None
        if n_threads not in self._whole:
            try:
                opened = self._open_whole(self.pages, n_threads)
            except Exception as error:  # ONNX Runtime's own classes, one for each status
                if not is_allocation_failure(error):
                    raise
                return next(iter(self._whole.values()), None)
            if len(self._whole) == MOST_WHOLE:
                self._whole.pop(next(iter(self._whole))).close()
            self._whole[n_threads] = opened
        return self._whole[n_threads]

    def prepare(self, slice_tokens: int) -> None:
        """Empty the arena before slices larger than those it has grown to.

        They would not fit what it holds: it would keep memory for either size.
        """
        if slice_tokens > self._arena_tokens:
            self.release_memory()
            self._arena_tokens = slice_tokens

    def release_memory(self) -> None:
        """Give back what the arena holds and no operation uses."""
        self._arena_keeper.shrink_arena()
        self._arena_tokens = 0

    is_allocation_failure = staticmethod(is_allocation_failure)

    def close(self) -> None:
        """Drop runners, sessions, and all views of the weights."""
        for runner in self._runners:
            runner.close()
        for whole in self._whole.values():
            whole.close()
        self._whole.clear()
        self._runners.clear()
        self._sessions.clear()
        self._layers.clear()
        self._embedding.clear()
        self._arrays = ()
        if self.pages is not None:
            self.pages.close()

    def _open_whole(self, pages: PackedWeights, n_threads: int) -> WholeModelRunner:
        pages.verify_all()
        model = build_whole_graph(self._architecture, self._int8)
        session = pages.open_whole(model, self._arrays, n_threads)
        pages.check_paths()
        return WholeModelRunner(session)

    def _values(self, arrays: Arrays) -> dict[str, object]:
        on_gpu = self._gpu_bytes > 0
        return {name: as_value(array, on_gpu=on_gpu) for name, array in arrays.items()}

    def _runner(self, n_threads: int) -> Runner:
        if self._gpu_bytes:  # its threads are not ours; each set of sessions takes its memory
            n_threads = 1
        if n_threads not in self._sessions:
            self._sessions[n_threads] = self._open_sessions(n_threads)
        runner = Runner(self._sessions[n_threads], self._layers, self._embedding)
        self._runners.append(runner)
        return runner

    def _open_sessions(self, n_threads: int) -> LayerSessions:
        if self.pages is None:
            n_layers = self._architecture.n_layers
            return LayerSessions.over_inputs(self._graphs, n_layers, n_threads, self._gpu_bytes)
        return LayerSessions.with_layers(self._graphs, n_threads)
