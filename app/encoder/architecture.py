"""What an encoder looks like, read from GGUF metadata alone.

Pure: no weights, no ONNX. Two families, in llama.cpp's names:

bert        learned positions, biases, GELU (erf) feed-forward
nomic-bert  rotary positions (half-split), no biases in the linear layers, SwiGLU feed-forward

Both are post-norm encoders: LayerNorm after each residual sum, and one on the embeddings.
Tensor and key names follow llama.cpp's gguf-py constants.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from app.errors import ModelUnsupportedError
from app.gguf.reader import GGUFHeader

SUPPORTED_ARCHITECTURES = ("bert", "nomic-bert")

MAX_SIZE = 1 << 24
# Rotary tables are made for all of them, and no tensor's shape vouches for the number.
MAX_CONTEXT_TOKENS = 1 << 17


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


def read_architecture(header: GGUFHeader) -> Architecture:
    """Describe the encoder in a GGUF file.

    Raises ModelUnsupportedError, naming what is missing or not built, before any weight is read.
    """
    metadata = header.metadata
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or name not in SUPPORTED_ARCHITECTURES:
        raise ModelUnsupportedError(
            f"architecture {name!r} is not supported; Plimsoll runs "
            + " and ".join(SUPPORTED_ARCHITECTURES)
        )
    hidden = _positive(metadata, f"{name}.embedding_length")
    n_heads = _positive(metadata, f"{name}.attention.head_count")
    if hidden % n_heads or (hidden // n_heads) % 2:
        raise ModelUnsupportedError(f"{hidden} values do not split into {n_heads} even-sized heads")
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
        pooling=_pooling(metadata.get(f"{name}.pooling_type", Pooling.MEAN.value)),
        rope_base=_number(metadata, f"{name}.rope.freq_base", 1000.0)
        if name == "nomic-bert"
        else None,
    )
    _check_tensors(architecture, shapes)
    return architecture


def layer_tensor_shapes(architecture: Architecture, layer: int) -> dict[str, tuple[int, ...]]:
    """Name and shape, in NumPy's order, of every tensor of block `layer`."""
    hidden, ffn = architecture.hidden, architecture.ffn
    prefix = f"blk.{layer}."
    shapes: dict[str, tuple[int, ...]] = {}
    if architecture.rotary:
        shapes[prefix + "attn_qkv.weight"] = (3 * hidden, hidden)
        shapes[prefix + "ffn_gate.weight"] = (ffn, hidden)
    else:
        for part in ("attn_q", "attn_k", "attn_v"):
            shapes[prefix + part + ".weight"] = (hidden, hidden)
            shapes[prefix + part + ".bias"] = (hidden,)
        shapes[prefix + "attn_output.bias"] = (hidden,)
        shapes[prefix + "ffn_up.bias"] = (ffn,)
        shapes[prefix + "ffn_down.bias"] = (hidden,)
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
        "token_types.weight": None,
    }
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


def _pooling(value: Any) -> Pooling:
    try:
        return Pooling(value)
    except ValueError:
        raise ModelUnsupportedError(
            f"pooling type {value!r} gives no single vector; mean (1), cls (2) and last (3) do"
        ) from None
