"""The encoder's layers as small ONNX graphs whose weights are inputs.

The graphs hold no weights and no sizes: either values over mapped weights are bound to those
inputs, or `onnx_constants` makes constants of them. There is one graph for each operation of the
protocol, and one that takes a whole text through every layer.

Weights stay in GGUF's order, (n_out, n_in). How a product is computed is `linear`, which each
function is given: as it is, by `gemm`, or over codes, by `int8_graphs`.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from plimsoll.encoder.architecture import Architecture

ONNX_OPSET = 20
ONNX_IR_VERSION = 9
MICROSOFT = "com.microsoft"
BATCH_AXIS = "batch_axis"
PROJECTED = {"queries": "attn_q", "keys": "attn_k", "values": "attn_v"}


class Graph:
    """Nodes, inputs and constants gathered in order; owned by the function that builds one graph.

    prefix: of the names that each layer has of its own. What is added twice is there once.
    """

    def __init__(self, linear: "Linear") -> None:
        self.prefix = ""
        self._linear = linear
        self._nodes: dict[str, onnx.NodeProto] = {}  # by output
        self._inputs: dict[str, onnx.ValueInfoProto] = {}
        self._constants: dict[str, onnx.TensorProto] = {}

    def own(self, name: str) -> str:
        """A name that each layer has of its own."""
        return f"{self.prefix}{name}"

    def input(self, name: str, rank: int, kind: int = TensorProto.FLOAT) -> str:
        """Something that is bound, or made a constant later."""
        shape = [f"{name}_{axis}" for axis in range(rank)]
        self._inputs[name] = helper.make_tensor_value_info(name, kind, shape)
        return name

    def constant(self, name: str, value: npt.ArrayLike) -> str:
        """A value that every layer shares."""
        self._constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def add(self, op: str, inputs: list[str], output: str, domain: str = "", **options: Any) -> str:
        """An operator, by its one output."""
        self._nodes[output] = helper.make_node(op, inputs, [output], domain=domain, **options)
        return output

    def linear(self, states: str, name: str, output: str, *, bias: bool) -> str:
        """(tokens, n_in) → (tokens, n_out) with the weights of `name`."""
        return self._linear(self, states, name, output, bias)

    def residual_norm(self, states: str, update: str, name: str, output: str, eps: float) -> str:
        """LayerNorm of a sum. SkipLayerNormalization is both in one, and three times as slow."""
        scale = [self.input(self.own(f"{name}.{kind}"), 1) for kind in ("weight", "bias")]
        total = self.add("Add", [states, update], self.own(f"{name}.in"))
        return self.add("LayerNormalization", [total, *scale], output, epsilon=eps)

    def to_bytes(self, name: str, outputs: dict[str, int]) -> bytes:
        """Serialize. outputs: rank of each."""
        shaped = [
            helper.make_tensor_value_info(
                output, TensorProto.FLOAT, [f"{output}_{axis}" for axis in range(rank)]
            )
            for output, rank in outputs.items()
        ]
        model = helper.make_model(
            helper.make_graph(
                list(self._nodes.values()),
                name,
                list(self._inputs.values()),
                shaped,
                list(self._constants.values()),
            ),
            opset_imports=[helper.make_opsetid("", ONNX_OPSET), helper.make_opsetid(MICROSOFT, 1)],
            ir_version=ONNX_IR_VERSION,
        )
        return bytes(model.SerializeToString())


Linear: TypeAlias = Callable[[Graph, str, str, str, bool], str]
"""Adds a product to a graph: states, name of the weights, output, and whether there is a bias."""


def gemm(graph: Graph, states: str, name: str, output: str, bias: bool) -> str:
    """A product with the weights `name.weight` and `name.bias`, as they are."""
    operands = [states, graph.input(graph.own(f"{name}.weight"), 2)]
    if bias:
        operands.append(graph.input(graph.own(f"{name}.bias"), 1))
    return graph.add("Gemm", operands, output, transB=1)


def embed_norm_graph(architecture: Architecture) -> bytes:
    """`states` (tokens, hidden) → `normed`: the LayerNorm on summed embeddings."""
    graph = Graph(gemm)
    states = graph.input("states", 2)
    scale = [graph.input("token_embd_norm.weight", 1), graph.input("token_embd_norm.bias", 1)]
    graph.add("LayerNormalization", [states, *scale], "normed", epsilon=architecture.layer_norm_eps)
    return graph.to_bytes("embed_norm", {"normed": 2})


def project_graph(architecture: Architecture, linear: Linear = gemm) -> bytes:
    """`states` (tokens, hidden) → `queries`, `keys`, `values`, each of the same shape.

    With rotary positions also takes `positions` int64 (1, tokens), each token's place in
    its own text, and the tables `cos` and `sin` (places, head_size / 2).
    """
    graph = Graph(linear)
    states = graph.input("states", 2)
    _add_batch_axis(graph)
    _project(graph, architecture, states)
    return graph.to_bytes("project", dict.fromkeys(PROJECTED, 2))


def attend_graph(architecture: Architecture) -> bytes:
    """`queries`, `keys`, `values` (1, tokens, hidden) of one whole text → `context`.

    No mask and no bias: the flash path, whose memory is linear in the length.
    """
    graph = Graph(gemm)
    inputs = [graph.input(name, 3) for name in PROJECTED]
    _attend(graph, architecture, inputs, "context")
    return graph.to_bytes("attend", {"context": 3})


def transform_graph(
    architecture: Architecture, linear: Linear = gemm, seen: Sequence[str] = ()
) -> bytes:
    """`states` and `context` (tokens, hidden) → `new_states`: the rest of the layer.

    seen: values on the way that are outputs too.
    """
    graph = Graph(linear)
    states, context = graph.input("states", 2), graph.input("context", 2)
    _transform(graph, architecture, states, context, "new_states")
    return graph.to_bytes("transform", dict.fromkeys(("new_states", *seen), 2))


def whole_graph(architecture: Architecture, linear: Linear = gemm) -> bytes:
    """`states` (tokens, hidden) of one whole text → `new_states` after the last layer.

    Takes what the operations take, a layer's weights under its number: `3.attn_q.weight`.
    """
    graph = Graph(linear)
    states = graph.input("states", 2)
    _add_batch_axis(graph)
    for layer in range(architecture.n_layers):
        graph.prefix = f"{layer}."
        projected = [
            graph.add("Unsqueeze", [name, BATCH_AXIS], f"{name}.batched")
            for name in _project(graph, architecture, states)
        ]
        attended = _attend(graph, architecture, projected, graph.own("context.batched"))
        context = graph.add("Squeeze", [attended, BATCH_AXIS], graph.own("context"))
        is_last = layer == architecture.n_layers - 1
        output = "new_states" if is_last else graph.own("new_states")
        states = _transform(graph, architecture, states, context, output)
    return graph.to_bytes("whole", {"new_states": 2})


def _add_batch_axis(graph: Graph) -> None:
    graph.add("Constant", [], BATCH_AXIS, value_ints=[0])


def _project(graph: Graph, architecture: Architecture, states: str) -> list[str]:
    outputs = []
    for output, name in PROJECTED.items():
        rotates = architecture.rotary and output != "values"
        target = graph.own(f"{name}.out" if rotates else output)
        projected = graph.linear(states, name, target, bias=not architecture.rotary)
        outputs.append(_rotate(graph, architecture, projected, output) if rotates else projected)
    return outputs


def _rotate(graph: Graph, architecture: Architecture, projected: str, output: str) -> str:
    rotation = [graph.input("positions", 2, TensorProto.INT64)]
    rotation += [graph.input("cos", 2), graph.input("sin", 2)]
    batched = graph.add("Unsqueeze", [projected, BATCH_AXIS], graph.own(f"{output}.straight"))
    rotated = graph.add(
        "RotaryEmbedding",
        [batched, *rotation],
        graph.own(f"{output}.rotated"),
        MICROSOFT,
        interleaved=0,
        num_heads=architecture.n_heads,
    )
    return graph.add("Squeeze", [rotated, BATCH_AXIS], graph.own(output))


def _attend(graph: Graph, architecture: Architecture, inputs: list[str], output: str) -> str:
    return graph.add(
        "MultiHeadAttention", inputs, output, MICROSOFT, num_heads=architecture.n_heads
    )


def _transform(
    graph: Graph, architecture: Architecture, states: str, context: str, output: str
) -> str:
    own, eps = graph.own, architecture.layer_norm_eps
    bias = not architecture.rotary
    attended = graph.linear(context, "attn_output", own("attended"), bias=bias)
    middle = graph.residual_norm(states, attended, "attn_output_norm", own("middle"), eps)
    up = graph.linear(middle, "ffn_up", own("up"), bias=bias)
    active = own("active")
    if architecture.rotary:
        gate = graph.linear(middle, "ffn_gate", own("gate"), bias=bias)
        # QuickGelu with alpha 1 is SiLU, x · sigmoid(x), in one pass.
        opened = graph.add("QuickGelu", [gate], own("gate.active"), MICROSOFT, alpha=1.0)
        graph.add("Mul", [opened, up], active)
    else:
        graph.add("Gelu", [up], active, approximate="none")
    down = graph.linear(active, "ffn_down", own("down"), bias=bias)
    return graph.residual_norm(middle, down, "layer_output_norm", output, eps)
