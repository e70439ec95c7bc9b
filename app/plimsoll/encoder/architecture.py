"""What an encoder looks like, read from GGUF metadata alone.

Pure: no weights, no ONNX. Two families, in llama.cpp's names:

bert        learned positions, biases, GELU (erf) feed-forward
nomic-bert  rotary positions (half-split), no biases in the linear layers, SwiGLU feed-forward

Both are post-norm encoders: LayerNorm after each residual sum, and one on the embeddings.
Queries, keys and values come from one fused matrix or from three, in either family; type
embeddings may be absent, as in DistilBERT.
Tensor and key names follow llama.cpp's gguf-py constants, and so do values of absent keys.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from plimsoll.encoder.metadata_keys import (
    ACTIVATION,
    HEAD_SIZE,
    HEADS,
    WIDTH,
    refuse_other_files,
    refuse_unbuilt_keys,
)
from plimsoll.errors import ModelUnsupportedError
from plimsoll.gguf.reader import GGUFHeader

SUPPORTED_ARCHITECTURES = ("bert", "nomic-bert")

MAX_SIZE = 1 << 24
# Rotary tables are made for all of them, and no tensor's shape vouches for the number.
MAX_CONTEXT_TOKENS = 1 << 17
QKV_PARTS = ("attn_q", "attn_k", "attn_v")  # in the order of a fused matrix
ROPE_BASE = 10_000.0  # of a file that does not say it, as llama.cpp has it


class Pooling(Enum):
    """How token states become one vector; the numbers are GGUF's `pooling_type`."""

    MEAN = 1
    CLS = 2
    LAST = 3


@dataclass(frozen=True)
class Architecture:
    """The shape of one encoder; sizes are numbers of float32 values."""

    name: str
    n_layers: int
    hidden: int
    ffn: int
    n_heads: int
    vocabulary: int
    context_tokens: int
    layer_norm_eps: float
    pooling: Pooling
    rope_base: float | None
    rope_factor: float = 1.0  # linear scaling: positions are divided by it
    fused_qkv: bool = False  # one attn_qkv in a block instead of attn_q, attn_k and attn_v
    token_types: bool = True  # whether there are type embeddings

    @property
    def head_size(self) -> int:
        """Values per attention head."""
        return self.hidden // self.n_heads

    @property
    def rotary(self) -> bool:
        """Whether positions are rotated into queries and keys instead of added to embeddings."""
        return self.rope_base is not None

    @property
    def layer_parameters(self) -> int:
        """Values in the linear layers of one block: what a token is multiplied with."""
        n_ffn_matrices = 3 if self.rotary else 2
        return 4 * self.hidden * self.hidden + n_ffn_matrices * self.hidden * self.ffn


def read_architecture(header: GGUFHeader, *, usual_pooling: Pooling = Pooling.MEAN) -> Architecture:
    """Describe the encoder in a GGUF file.

    usual_pooling: taken where the file does not say it.
    Raises ModelUnsupportedError, naming the key or tensor that is missing or not built, before
    any weight is read.
    """
    metadata = header.metadata
    refuse_other_files(metadata)
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or name not in SUPPORTED_ARCHITECTURES:
        raise ModelUnsupportedError(
            f"architecture {name!r} is not supported (general.architecture); Plimsoll runs "
            + " and ".join(SUPPORTED_ARCHITECTURES)
        )
    hidden = _positive(metadata, f"{name}.embedding_length")
    n_heads = _positive(metadata, f"{name}.attention.head_count")
    if hidden % n_heads or (hidden // n_heads) % 2:
        raise ModelUnsupportedError(f"{hidden} values do not split into {n_heads} even-sized heads")
    rotary = name == "nomic-bert"
    built = {
        WIDTH: hidden,
        HEADS: n_heads,
        HEAD_SIZE: hidden // n_heads,
        ACTIVATION: "silu" if rotary else "gelu",
    }
    refuse_unbuilt_keys(metadata, name, built)
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    architecture = Architecture(
        name=name,
        n_layers=_positive(metadata, f"{name}.block_count"),
        hidden=hidden,
        ffn=_positive(metadata, f"{name}.feed_forward_length"),
        n_heads=n_heads,
        vocabulary=(*shapes.get("token_embd.weight", ()), 0)[0],
        context_tokens=_positive(metadata, f"{name}.context_length", MAX_CONTEXT_TOKENS),
        layer_norm_eps=_number(metadata, f"{name}.attention.layer_norm_epsilon", 1e-12),
        pooling=_pooling(metadata, f"{name}.pooling_type", usual_pooling),
        rope_base=_number(metadata, f"{name}.rope.freq_base", ROPE_BASE) if rotary else None,
        rope_factor=_rope_factor(metadata, name) if rotary else 1.0,
        fused_qkv=_is_fused(shapes, usual=rotary),
        token_types="token_types.weight" in shapes,
    )
    _check_tensors(architecture, shapes)
    _check_token_types(metadata, shapes)
    return architecture


def layer_tensor_shapes(architecture: Architecture, layer: int) -> dict[str, tuple[int, ...]]:
    """Name and shape, in NumPy's order, of every tensor of block `layer`."""
    hidden, ffn = architecture.hidden, architecture.ffn
    prefix = f"blk.{layer}."
    shapes: dict[str, tuple[int, ...]] = {}
    biased = not architecture.rotary
    parts = {"attn_qkv": 3 * hidden} if architecture.fused_qkv else dict.fromkeys(QKV_PARTS, hidden)
    for part, n_out in parts.items():
        shapes[f"{prefix}{part}.weight"] = (n_out, hidden)
        if biased:
            shapes[f"{prefix}{part}.bias"] = (n_out,)
    if biased:
        shapes[prefix + "attn_output.bias"] = (hidden,)
        shapes[prefix + "ffn_up.bias"] = (ffn,)
        shapes[prefix + "ffn_down.bias"] = (hidden,)
    else:
        shapes[prefix + "ffn_gate.weight"] = (ffn, hidden)
    shapes[prefix + "attn_output.weight"] = (hidden, hidden)
    shapes[prefix + "ffn_up.weight"] = (ffn, hidden)
    shapes[prefix + "ffn_down.weight"] = (hidden, ffn)
    for norm in ("attn_output_norm", "layer_output_norm"):
        shapes[prefix + norm + ".weight"] = (hidden,)
        shapes[prefix + norm + ".bias"] = (hidden,)
    return shapes


def embedding_tensor_shapes(architecture: Architecture) -> dict[str, tuple[int, ...] | None]:
    """Name and shape of the tensors before the first block; None where only the width is fixed."""
    hidden = architecture.hidden
    shapes: dict[str, tuple[int, ...] | None] = {
        "token_embd.weight": (architecture.vocabulary, hidden),
        "token_embd_norm.weight": (hidden,),
        "token_embd_norm.bias": (hidden,),
    }
    if architecture.token_types:
        shapes["token_types.weight"] = None
    if not architecture.rotary:
        shapes["position_embd.weight"] = (architecture.context_tokens, hidden)
    return shapes


def _check_tensors(architecture: Architecture, shapes: Mapping[str, tuple[int, ...]]) -> None:
    unknown = set(shapes)
    # One by one: the number of blocks is the file's word until its tensors are found.
    for name, shape in _wanted_tensors(architecture):
        found = shapes.get(name)
        if found is None:
            raise ModelUnsupportedError(f"the file has no tensor {name}")
        if shape is None:
            shape = (*found[:1], architecture.hidden)
        if found != shape:
            raise ModelUnsupportedError(f"tensor {name} has shape {found}, not {shape}")
        unknown.remove(name)
    if unknown:
        # A tensor left out would change the vectors silently: a bias, an expert, an adapter.
        raise ModelUnsupportedError(
            f"tensors this architecture does not have here: {', '.join(sorted(unknown)[:5])}"
        )


def _is_fused(shapes: Mapping[str, tuple[int, ...]], *, usual: bool) -> bool:
    """Whether blocks have one attn_qkv, by the first of them; where it has neither, as usual."""
    if "blk.0.attn_q.weight" in shapes:
        return False
    return usual or "blk.0.attn_qkv.weight" in shapes


def _check_token_types(metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Only the first type is used, so their number matters to nothing but the file's own sense."""
    key = "tokenizer.ggml.token_type_count"
    said, shape = metadata.get(key), shapes.get("token_types.weight")
    if said is None or shape is None:
        return
    if type(said) is not int or said != shape[0]:
        raise ModelUnsupportedError(
            f"metadata {key} is {said!r}, and tensor token_types.weight has {shape[0]} rows"
        )


def _wanted_tensors(
    architecture: Architecture,
) -> Iterator[tuple[str, tuple[int, ...] | None]]:
    yield from embedding_tensor_shapes(architecture).items()
    for layer in range(architecture.n_layers):
        yield from layer_tensor_shapes(architecture, layer).items()


def _positive(metadata: Mapping[str, Any], key: str, most: int = MAX_SIZE) -> int:
    value = metadata.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
        raise ModelUnsupportedError(
            f"metadata {key} is {value!r}, not a whole number from 1 to {most}"
        )
    return value


def _number(metadata: Mapping[str, Any], key: str, default: float) -> float:
    value = metadata.get(key, default)
    if not isinstance(value, float) or not 0 < value < float("inf"):
        raise ModelUnsupportedError(f"metadata {key} is {value!r}, not a positive number")
    return value


def _rope_factor(metadata: Mapping[str, Any], name: str) -> float:
    """What positions are divided by; llama.cpp reads the newer of two keys, and 0 as 1."""
    keys = (f"{name}.rope.scaling.factor", f"{name}.rope.scale_linear")
    held = [key for key in keys if key in metadata]
    if not held or metadata.get(f"{name}.rope.scaling.type") == "none":
        return 1.0
    value = metadata[held[0]]
    return 1.0 if isinstance(value, float) and value == 0 else _number(metadata, held[0], 1.0)


def _pooling(metadata: Mapping[str, Any], key: str, usual: Pooling) -> Pooling:
    value = metadata.get(key, usual.value)
    # Neither True nor 1.0 is a number of a pooling, though both equal 1.
    if type(value) is not int or value not in {pooling.value for pooling in Pooling}:
        raise ModelUnsupportedError(
            f"metadata {key} is {value!r}, which gives no single vector; "
            "mean (1), cls (2) and last (3) do"
        )
    return Pooling(value)
