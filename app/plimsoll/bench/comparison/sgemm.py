"""What the processor's cores can do at most: float32 matrix products, GFLOP/s."""

from collections.abc import Callable
from time import perf_counter

import numpy as np

ROWS = (512, 768, 1024)
N_IN, N_OUT = 768, 3072
REPEATS = 6


def best_rates() -> dict[str, float]:
    """Best GFLOP/s of each library over all row counts and repeats, all cores."""
    return {"ONNX Runtime": _best(_onnxruntime_product), "NumPy": _best(_numpy_product)}


def _best(make: Callable[[np.ndarray, np.ndarray], Callable[[], object]]) -> float:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((N_IN, N_OUT), dtype=np.float32)
    best = 0.0
    for n_rows in ROWS:
        product = make(rng.standard_normal((n_rows, N_IN), dtype=np.float32), weights)
        product()
        for _ in range(REPEATS):
            start = perf_counter()
            product()
            best = max(best, 2e-9 * n_rows * N_IN * N_OUT / (perf_counter() - start))
    return best


def _numpy_product(states: np.ndarray, weights: np.ndarray) -> Callable[[], object]:
    out = np.empty((len(states), N_OUT), np.float32)
    return lambda: np.matmul(states, weights, out=out)


def _onnxruntime_product(states: np.ndarray, weights: np.ndarray) -> Callable[[], object]:
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("Gemm", ["states", "weights"], ["product"])],
        "product",
        [helper.make_tensor_value_info("states", TensorProto.FLOAT, ["rows", N_IN])],
        [helper.make_tensor_value_info("product", TensorProto.FLOAT, ["rows", N_OUT])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    out = np.empty((len(states), N_OUT), np.float32)
    binding.bind_cpu_input("states", states)
    binding.bind_output("product", "cpu", 0, np.float32, out.shape, out.ctypes.data)
    return lambda: (session.run_with_iobinding(binding), out)
