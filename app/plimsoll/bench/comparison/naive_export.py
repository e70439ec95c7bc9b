"""The naive path's model file: the encoder as an exporter writes it.

One ordinary ONNX graph with float32 initializers: MatMul attention with an additive mask,
Softmax, rotary positions by Slice, Neg and Concat, GELU by Erf, SwiGLU by Sigmoid.

`python -m plimsoll.bench.comparison.naive_export SIDECAR TARGET` writes it from a sidecar's
tensors, in a process of its own: the weights pass through memory several times.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from plimsoll.encoder.architecture import Architecture, read_architecture
from plimsoll.encoder.weights import rotary_tables
from plimsoll.sidecar.sidecar import Sidecar

OPSET = 17  # the first with LayerNormalization, and exporters' default for years
IR_VERSION = 8
MASKED = float(np.finfo(np.float32).min)


class _Export:
    """Nodes and initializers in the order of an export; owned by `naive_graph`."""

    def __init__(self, architecture: Architecture, sidecar: Sidecar) -> None:
        self.architecture = architecture
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._sidecar = sidecar

    def add(self, op: str, *inputs: str, output: str = "", **options: Any) -> str:
        name = output or f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **options))
        return name

    def constant(self, name: str, values: np.ndarray) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def integers(self, *values: int) -> str:
        return self.constant(
            f"integers_{len(self.initializers)}", np.asarray(values, dtype=np.int64)
        )

    def number(self, value: float) -> str:
        return self.constant(f"number_{len(self.initializers)}", np.array(value, np.float32))

    def tensor(self, name: str) -> str:
        return self.constant(name, self._sidecar.array(name))

    def linear(self, states: str, name: str) -> str:
        """(batch, seq, n_in) → (batch, seq, n_out); weights transposed, as exporters do."""
        weight = self.constant(f"{name}.weight", self._sidecar.array(f"{name}.weight").T)
        product = self.add("MatMul", states, weight)
        if f"{name}.bias" not in self._sidecar.index.tensors:
            return product
        return self.add("Add", product, self.tensor(f"{name}.bias"))

    def norm(self, states: str, name: str, output: str = "") -> str:
        scale = (self.tensor(f"{name}.weight"), self.tensor(f"{name}.bias"))
        eps = self.architecture.layer_norm_eps
        return self.add("LayerNormalization", states, *scale, output=output, axis=-1, epsilon=eps)

    def part(self, values: str, start: int, end: int, axis: int) -> str:
        bounds = (self.integers(start), self.integers(end), self.integers(axis))
        return self.add("Slice", values, *bounds)


def naive_graph(sidecar: Sidecar) -> onnx.ModelProto:
    """`input_ids`, `attention_mask` int64 (batch, seq) → `states` (batch, seq, hidden)."""
    architecture = read_architecture(sidecar.header)
    export = _Export(architecture, sidecar)
    n_tokens = export.add("Gather", export.add("Shape", "input_ids"), export.integers(1))
    states = export.add("Gather", export.tensor("token_embd.weight"), "input_ids")
    types = export.constant("token_types.weight", sidecar.array("token_types.weight")[0])
    states = export.add("Add", states, types)
    first = export.integers(0)
    rotation: tuple[str, str] | None = None
    if architecture.rope_base is None:
        table = export.tensor("position_embd.weight")
        positions = export.add("Slice", table, first, n_tokens, first)
        states = export.add("Add", states, positions)
    else:
        tables = rotary_tables(
            architecture.rope_base, architecture.head_size, architecture.context_tokens
        )
        halves = zip(("cos", "sin"), tables, strict=True)
        doubled = [export.constant(name, np.hstack((half, half))) for name, half in halves]
        cos, sin = (export.add("Slice", table, first, n_tokens, first) for table in doubled)
        rotation = (cos, sin)
    states = export.norm(states, "token_embd_norm")
    mask = _additive_mask(export)
    for layer in range(architecture.n_layers):
        last = layer == architecture.n_layers - 1
        states = _block(export, f"blk.{layer}.", states, mask, rotation, "states" if last else "")
    integers = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "seq"])
        for name in ("input_ids", "attention_mask")
    ]
    shape: list[str | int | None] = ["batch", "seq", architecture.hidden]
    result = helper.make_tensor_value_info("states", TensorProto.FLOAT, shape)
    return helper.make_model(
        helper.make_graph(export.nodes, "naive", integers, [result], export.initializers),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )


def _additive_mask(export: _Export) -> str:
    """0 where a token stands and the lowest float where padding does: (batch, 1, 1, seq)."""
    spread = export.add("Unsqueeze", "attention_mask", export.integers(1, 2))
    present = export.add("Cast", spread, to=TensorProto.FLOAT)
    absent = export.add("Sub", export.number(1.0), present)
    return export.add("Mul", absent, export.number(MASKED))


def _block(
    export: _Export,
    prefix: str,
    states: str,
    mask: str,
    rotation: tuple[str, str] | None,
    output: str,
) -> str:
    architecture = export.architecture
    context = _attention(export, prefix, states, mask, rotation)
    attended = export.linear(context, f"{prefix}attn_output")
    middle = export.norm(export.add("Add", states, attended), f"{prefix}attn_output_norm")
    up = export.linear(middle, f"{prefix}ffn_up")
    if architecture.rotary:
        gate = export.linear(middle, f"{prefix}ffn_gate")
        active = export.add("Mul", gate, export.add("Sigmoid", gate))
        inner = export.add("Mul", active, up)
    else:
        scaled = export.add("Div", up, export.number(2.0**0.5))
        raised = export.add("Add", export.add("Erf", scaled), export.number(1.0))
        inner = export.add("Mul", export.add("Mul", up, raised), export.number(0.5))
    down = export.linear(inner, f"{prefix}ffn_down")
    return export.norm(export.add("Add", middle, down), f"{prefix}layer_output_norm", output)


def _attention(
    export: _Export, prefix: str, states: str, mask: str, rotation: tuple[str, str] | None
) -> str:
    """Every head's attention over the padded batch, heads joined: (batch, seq, hidden)."""
    hidden, head_size = export.architecture.hidden, export.architecture.head_size
    split = export.integers(0, 0, export.architecture.n_heads, head_size)
    if export.architecture.rotary:
        joined = export.linear(states, f"{prefix}attn_qkv")
        parts = [export.part(joined, i * hidden, (i + 1) * hidden, 2) for i in range(3)]
    else:
        parts = [export.linear(states, f"{prefix}attn_{part}") for part in "qkv"]
    queries, keys, values = (
        export.add("Transpose", export.add("Reshape", part, split), perm=[0, 2, 1, 3])
        for part in parts
    )  # (batch, heads, seq, head_size)
    if rotation is not None:
        queries = _rotated(export, queries, *rotation)
        keys = _rotated(export, keys, *rotation)
    turned = export.add("Transpose", keys, perm=[0, 1, 3, 2])
    scores = export.add("MatMul", queries, turned)  # (batch, heads, seq, seq)
    scaled = export.add("Div", scores, export.number(head_size**0.5))
    weights = export.add("Softmax", export.add("Add", scaled, mask), axis=-1)
    context = export.add("Transpose", export.add("MatMul", weights, values), perm=[0, 2, 1, 3])
    return export.add("Reshape", context, export.integers(0, 0, hidden))


def _rotated(export: _Export, heads: str, cos: str, sin: str) -> str:
    head_size = export.architecture.head_size
    lower = export.part(heads, 0, head_size // 2, 3)
    upper = export.part(heads, head_size // 2, head_size, 3)
    turned = export.add("Concat", export.add("Neg", upper), lower, axis=-1)
    return export.add("Add", export.add("Mul", heads, cos), export.add("Mul", turned, sin))


def write_naive(sidecar_folder: Path, target: Path) -> None:
    """Write the graph with its weights in one file, which appears complete or not at all."""
    sidecar = Sidecar(sidecar_folder)
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = target.with_suffix(".tmp")
    onnx.save(naive_graph(sidecar), partial)
    partial.replace(target)
    sidecar.close()


if __name__ == "__main__":
    write_naive(Path(sys.argv[1]), Path(sys.argv[2]))
