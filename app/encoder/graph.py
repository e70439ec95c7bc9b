"""One encoder layer as small ONNX graphs whose weights are inputs.

The graphs hold no weights and no sizes, so sessions over them are cheap, and one set
serves every layer. A layer is three of them, because attention must see one whole text
while the token-wise parts may run on a slice of a text or on several texts together:

    project   states → queries, keys, values   (rotated where positions are rotary)
    attend    queries, keys, values → context
    transform states, context → states         (output projection, norm, feed-forward, norm)

Weights stay in GGUF's order, (n_out, n_in). The *plain* kernel computes states · Wᵀ;
the *swapped* one W · statesᵀ, which lets the library read the weight where it lies
and wins for short inputs; the two differ by rounding only.
"""

from enum import Enum
from typing import Any

import onnx
from onnx import TensorProto, helper

from app.encoder.architecture import Architecture

ONNX_OPSET = 20
ONNX_IR_VERSION = 9
MICROSOFT = "com.microsoft"


class Kernel(Enum):
    """Which operand of a matrix product comes first."""

    PLAIN = "plain"
    SWAPPED = "swapped"


class _Graph:
    """Nodes and inputs gathered in order; owned by the function that builds one graph."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, rank: int, kind: int = TensorProto.FLOAT) -> str:
        shape = [f"{name}_{axis}" for axis in range(rank)]
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def add(self, op: str, inputs: list[str], output: str, domain: str = "", **options: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], domain=domain, **options))
        return output

    def linear(self, states: str, name: str, *, bias: bool) -> str:
        """(tokens, n_in) → (tokens, n_out) with the inputs `name.weight` and `name.bias`."""
        weight = self.input(f"{name}.weight", 2)
        output = f"{name}.out"
        if self.kernel is Kernel.PLAIN:
            operands = [states, weight]
            if bias:
                operands.append(self.input(f"{name}.bias", 1))
            return self.add("Gemm", operands, output, transB=1)
        product = self.add("Gemm", [weight, states], f"{name}.transposed", transB=1)
        if not bias:
            return self.add("Transpose", [product], output, perm=[1, 0])
        rows = self.add("Transpose", [product], f"{name}.rows", perm=[1, 0])
        return self.add("Add", [rows, self.input(f"{name}.bias", 1)], output)

    def residual_norm(self, states: str, update: str, name: str, output: str, eps: float) -> str:
        scale = [self.input(f"{name}.weight", 1), self.input(f"{name}.bias", 1)]
        return self.add(
            "SkipLayerNormalization", [states, update, *scale], output, MICROSOFT, epsilon=eps
        )

    def to_bytes(self, name: str, outputs: dict[str, int]) -> bytes:
        shaped = [
            helper.make_tensor_value_info(
                output, TensorProto.FLOAT, [f"{output}_{axis}" for axis in range(rank)]
            )
            for output, rank in outputs.items()
        ]
        model = helper.make_model(
            helper.make_graph(self.nodes, name, self.inputs, shaped),
            opset_imports=[helper.make_opsetid("", ONNX_OPSET), helper.make_opsetid(MICROSOFT, 1)],
            ir_version=ONNX_IR_VERSION,
        )
        return bytes(model.SerializeToString())


def embed_norm_graph(architecture: Architecture) -> bytes:
    """`states` (tokens, hidden) → `normed`: the LayerNorm on summed embeddings."""
    graph = _Graph(Kernel.PLAIN)
    states = graph.input("states", 2)
    scale = [graph.input("token_embd_norm.weight", 1), graph.input("token_embd_norm.bias", 1)]
    graph.add("LayerNormalization", [states, *scale], "normed", epsilon=architecture.layer_norm_eps)
    return graph.to_bytes("embed_norm", {"normed": 2})


def project_graph(architecture: Architecture, kernel: Kernel) -> bytes:
    """`states` (tokens, hidden) → `queries`, `keys`, `values`, each of the same shape.

    With rotary positions also takes `positions` int64 (1, tokens), each token's place in
    its own text, and the tables `cos` and `sin` (places, head_size / 2).
    """
    graph = _Graph(kernel)
    states = graph.input("states", 2)
    names = {"queries": "attn_q", "keys": "attn_k", "values": "attn_v"}
    if architecture.rotary:
        graph.nodes.append(helper.make_node("Constant", [], ["batch_axis"], value_ints=[0]))
        rotation = [graph.input("positions", 2, TensorProto.INT64)]
        rotation += [graph.input("cos", 2), graph.input("sin", 2)]
    for output, name in names.items():
        projected = graph.linear(states, name, bias=not architecture.rotary)
        if architecture.rotary and output != "values":
            batched = graph.add("Unsqueeze", [projected, "batch_axis"], f"{name}.batched")
            rotated = graph.add(
                "RotaryEmbedding",
                [batched, *rotation],
                f"{name}.rotated",
                MICROSOFT,
                interleaved=0,
                num_heads=architecture.n_heads,
            )
            graph.add("Squeeze", [rotated, "batch_axis"], output)
        else:
            graph.nodes[-1].output[0] = output
    return graph.to_bytes("project", dict.fromkeys(names, 2))


def attend_graph(architecture: Architecture) -> bytes:
    """`queries`, `keys`, `values` (1, tokens, hidden) of one whole text → `context`.

    No mask and no bias: the flash path, whose memory is linear in the length.
    """
    graph = _Graph(Kernel.PLAIN)
    inputs = [graph.input(name, 3) for name in ("queries", "keys", "values")]
    graph.add("MultiHeadAttention", inputs, "context", MICROSOFT, num_heads=architecture.n_heads)
    return graph.to_bytes("attend", {"context": 3})


def transform_graph(architecture: Architecture, kernel: Kernel) -> bytes:
    """`states` and `context` (tokens, hidden) → `new_states`: the rest of the layer."""
    graph = _Graph(kernel)
    states = graph.input("states", 2)
    context = graph.input("context", 2)
    eps = architecture.layer_norm_eps
    bias = not architecture.rotary
    attended = graph.linear(context, "attn_output", bias=bias)
    middle = graph.residual_norm(states, attended, "attn_output_norm", "middle", eps)
    up = graph.linear(middle, "ffn_up", bias=bias)
    if architecture.rotary:
        gate = graph.linear(middle, "ffn_gate", bias=bias)
        # QuickGelu with alpha 1 is SiLU, x · sigmoid(x), in one pass.
        graph.add("QuickGelu", [gate], "ffn_gate.active", MICROSOFT, alpha=1.0)
        graph.add("Mul", ["ffn_gate.active", up], "ffn.active")
    else:
        graph.add("Gelu", [up], "ffn.active", approximate="none")
    down = graph.linear("ffn.active", "ffn_down", bias=bias)
    graph.residual_norm(middle, down, "layer_output_norm", "new_states", eps)
    return graph.to_bytes("transform", {"new_states": 2})
