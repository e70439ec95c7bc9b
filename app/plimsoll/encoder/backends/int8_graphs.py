"""Products in int8, for the graphs of `onnx_graphs`.

What a product takes is rotated in blocks by one small product, brought to ±1 by the largest value
of each token, and rounded to uint8 around 128: once for all products that take it. Codes and
scales are inputs, as weights are. Attention's output is not rotated here: the values' weights and
the output's hold that already, head by head.

Bits: a product of integers is exact and the rest is done row by row, so a row's bits depend on no
other row. Only ONNX Runtime's own operators, of which MatMulIntegerToFloat is the one that counts.
"""

from collections.abc import Set

import numpy as np
from onnx import TensorProto

from plimsoll.encoder.architecture import Architecture
from plimsoll.encoder.backends.onnx_graphs import MICROSOFT, Graph, Linear, gemm
from plimsoll.encoder.quantization.gptq import CODE_MAX
from plimsoll.encoder.quantization.hadamard import block_size, hadamard
from plimsoll.encoder.quantization.linears import DOWN

ZERO_POINT = 128
TINY = np.float32(1e-30)  # what a row of zeros is divided by


def int8_linear(architecture: Architecture, int8: Set[str]) -> Linear:
    """Products over codes for the linears named in `int8`, and `gemm` for the others."""

    def linear(graph: Graph, states: str, name: str, output: str, bias: bool) -> str:
        if name not in int8:
            return gemm(graph, states, name, output, bias)
        width = architecture.ffn if name == DOWN else architecture.hidden
        block = 1 if name == "attn_output" else block_size(width)
        codes, largest = _round(graph, states, width, block)
        operands = [
            codes,
            graph.input(graph.own(f"{name}.codes"), 2, TensorProto.INT8),
            _step(graph),
            graph.input(graph.own(f"{name}.scales"), 1),
            _zero_point(graph),
        ]
        own = graph.own(name)
        unscaled = graph.add("MatMulIntegerToFloat", operands, f"{own}.unscaled", MICROSOFT)
        if not bias:
            return graph.add("Mul", [unscaled, largest], output)
        product = graph.add("Mul", [unscaled, largest], f"{own}.product")
        return graph.add("Add", [product, graph.input(f"{own}.bias", 1)], output)

    return linear


def _round(graph: Graph, states: str, width: int, block: int) -> tuple[str, str]:
    """Codes of each token, and its largest value."""
    rotated = _rotate(graph, states, width, block) if block > 1 else states
    sizes = graph.add("Abs", [rotated], f"{states}.sizes")
    last_axis = graph.constant("last_axis", np.array([-1], np.int64))
    found = graph.add("ReduceMax", [sizes, last_axis], f"{states}.found", keepdims=1)
    largest = graph.add("Max", [found, graph.constant("tiny", TINY)], f"{states}.largest")
    factor = graph.add("Reciprocal", [largest], f"{states}.factor")
    unit = graph.add("Mul", [rotated, factor], f"{states}.unit")
    rounding = [unit, _step(graph), _zero_point(graph)]
    return graph.add("QuantizeLinear", rounding, f"{states}.codes"), largest


def _rotate(graph: Graph, states: str, width: int, block: int) -> str:
    in_blocks = graph.constant(f"blocks_of_{block}", np.array([-1, block], np.int64))
    in_rows = graph.constant(f"rows_of_{width}", np.array([-1, width], np.int64))
    blocks = graph.add("Reshape", [states, in_blocks], f"{states}.blocks")
    matrix = graph.constant(f"hadamard_{block}", hadamard(block))
    turned = graph.add("MatMul", [blocks, matrix], f"{states}.turned")
    return graph.add("Reshape", [turned, in_rows], f"{states}.rotated")


def _step(graph: Graph) -> str:
    return graph.constant("step", np.float32(1 / CODE_MAX))


def _zero_point(graph: Graph) -> str:
    return graph.constant("zero_point", np.uint8(ZERO_POINT))
