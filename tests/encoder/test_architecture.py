"""Which encoders are built, and what is refused before any weight is read."""

from typing import Any

import numpy as np
import pytest

from plimsoll.encoder.architecture import Pooling, read_architecture
from plimsoll.errors import ModelUnsupportedError
from plimsoll.gguf.reader import GGUFHeader, TensorInfo
from plimsoll.gguf.types import GGMLType
from tests.synthetic import Shape, tensor_shapes

SHAPE = Shape(n_layers=2, hidden=64, ffn=96, heads=4, vocab=500, context=128)
BOTH = ("bert", "nomic-bert")


def header(
    arch: str,
    *,
    metadata: dict[str, Any] | None = None,
    tensors: dict[str, tuple[int, ...] | None] | None = None,
    fused_qkv: bool | None = None,
) -> GGUFHeader:
    """A file's header; None takes a key or a tensor out."""
    keys: dict[str, Any] = {
        "general.architecture": arch,
        f"{arch}.block_count": SHAPE.n_layers,
        f"{arch}.embedding_length": SHAPE.hidden,
        f"{arch}.feed_forward_length": SHAPE.ffn,
        f"{arch}.context_length": SHAPE.context,
        f"{arch}.attention.head_count": SHAPE.heads,
        f"{arch}.attention.layer_norm_epsilon": SHAPE.eps,
        f"{arch}.pooling_type": 1,
    }
    if arch == "nomic-bert":
        keys["nomic-bert.rope.freq_base"] = 1000.0
    keys |= metadata or {}
    shapes = tensor_shapes(arch, SHAPE, fused_qkv=fused_qkv) | (tensors or {})
    return GGUFHeader(
        version=3,
        metadata={key: value for key, value in keys.items() if value is not None},
        tensors=tuple(
            TensorInfo(name, shape, GGMLType.F32, offset=0, n_bytes=0)
            for name, shape in shapes.items()
            if shape is not None
        ),
        alignment=32,
        data_offset=0,
    )


def refused(found: GGUFHeader) -> str:
    with pytest.raises(ModelUnsupportedError) as error:
        read_architecture(found)
    return str(error.value)


@pytest.mark.parametrize("arch", BOTH)
def test_what_the_file_says_is_what_is_built(arch: str):
    """A size read wrong shows only in the vectors, if at all."""
    found = read_architecture(header(arch))

    assert (found.name, found.n_layers, found.hidden, found.ffn) == (arch, 2, 64, 96)
    assert (found.n_heads, found.head_size, found.vocabulary) == (4, 16, 500)
    assert (found.context_tokens, found.layer_norm_eps) == (128, 1e-12)
    assert found.pooling is Pooling.MEAN
    assert found.rotary is (arch == "nomic-bert")
    assert found.rope_base == (1000.0 if arch == "nomic-bert" else None)


def test_a_rotary_base_that_the_file_does_not_say_is_llama_cpps():
    """10000, not Nomic's 1000: every position after the first would be turned otherwise."""
    found = read_architecture(header("nomic-bert", metadata={"nomic-bert.rope.freq_base": None}))

    assert found.rope_base == 10_000.0


@pytest.mark.parametrize(
    ("keys", "factor"),
    [
        ({}, 1.0),
        ({"scaling.factor": 4.0}, 4.0),
        ({"scaling.type": "linear", "scaling.factor": 4.0}, 4.0),
        ({"scaling.type": "none", "scaling.factor": 4.0}, 1.0),
        ({"scale_linear": 2.0}, 2.0),
        ({"scaling.factor": 4.0, "scale_linear": 2.0}, 4.0),
        ({"scaling.factor": 0.0}, 1.0),
    ],
)
def test_linear_rotary_scaling_is_read_as_llama_cpp_reads_it(keys: dict, factor: float):
    """By the newer key, where there are both; zero stands for none."""
    said = {f"nomic-bert.rope.{key}": value for key, value in keys.items()}

    assert read_architecture(header("nomic-bert", metadata=said)).rope_factor == factor


@pytest.mark.parametrize("key", ["rope.scaling.factor", "rope.scale_linear"])
@pytest.mark.parametrize("value", [-2.0, float("inf"), float("nan"), "2", 2, True])
def test_a_scaling_that_cannot_be_is_refused_by_its_key(key: str, value: object):
    """Positions are divided by it."""
    found = header("nomic-bert", metadata={f"nomic-bert.{key}": value})

    assert f"nomic-bert.{key}" in refused(found)


@pytest.mark.parametrize("arch", BOTH)
@pytest.mark.parametrize("fused", [False, True])
def test_queries_keys_and_values_may_be_fused_or_not_in_either_family(arch: str, fused: bool):
    """Converters write both, and llama.cpp runs both."""
    assert read_architecture(header(arch, fused_qkv=fused)).fused_qkv is fused


@pytest.mark.parametrize("arch", BOTH)
def test_type_embeddings_may_be_absent(arch: str):
    """DistilBERT has none."""
    assert not read_architecture(header(arch, tensors={"token_types.weight": None})).token_types


def test_the_rotary_base_is_the_files_own():
    """Versions of one model differ in it."""
    found = read_architecture(header("nomic-bert", metadata={"nomic-bert.rope.freq_base": 500.0}))

    assert found.rope_base == 500.0


@pytest.mark.parametrize(
    ("number", "pooling"), [(1, Pooling.MEAN), (2, Pooling.CLS), (3, Pooling.LAST)]
)
def test_the_pooling_is_the_files_own(number: int, pooling: Pooling):
    """Numbers are llama.cpp's."""
    assert (
        read_architecture(header("bert", metadata={"bert.pooling_type": number})).pooling is pooling
    )


def test_a_file_without_a_pooling_takes_what_is_usual():
    """For its model, where that is known; the mean otherwise."""
    found = header("bert", metadata={"bert.pooling_type": None})

    assert read_architecture(found).pooling is Pooling.MEAN
    assert read_architecture(found, usual_pooling=Pooling.CLS).pooling is Pooling.CLS


@pytest.mark.parametrize("number", [0, 4, -1, "mean", True, 1.0, np.ones(1, np.int32)])
def test_a_pooling_that_gives_no_single_vector_is_refused(number: object):
    """None (0) and rank (4) are for other uses of a model; true and 1.0 are no number of one."""
    told = refused(header("bert", metadata={"bert.pooling_type": number}))

    assert f"bert.pooling_type is {number!r}" in told
    assert "mean (1)" in told


@pytest.mark.parametrize("arch", ["llama", "jina-bert-v2", "nomic-bert-moe", None])
def test_an_unknown_architecture_is_refused_with_those_that_are_known(arch: str | None):
    """A mixture of experts is near enough to load and wrong in every vector."""
    told = refused(header("bert", metadata={"general.architecture": arch}))

    assert repr(arch) in told
    assert "bert and nomic-bert" in told


@pytest.mark.parametrize(
    ("arch", "name"),
    [
        (arch, name)
        for arch in BOTH
        for name in tensor_shapes(arch, SHAPE)
        # The first decides whether there are three; types may be absent.
        if name not in ("blk.0.attn_qkv.weight", "token_types.weight")
    ],
)
def test_each_tensor_that_is_missing_is_named(arch: str, name: str):
    """None of them may be taken for zeros."""
    assert name in refused(header(arch, tensors={name: None}))


@pytest.mark.parametrize("arch", BOTH)
def test_blocks_without_queries_are_refused_with_the_tensor_that_is_usual(arch: str):
    """Neither form is there."""
    usual = {"bert": "blk.0.attn_q.weight", "nomic-bert": "blk.0.attn_qkv.weight"}[arch]

    assert usual in refused(header(arch, tensors={usual: None}))


@pytest.mark.parametrize(
    ("arch", "name", "shape"),
    [
        ("bert", "blk.0.attn_qkv.weight", (192, 64)),
        ("bert", "blk.1.ffn_gate.weight", (96, 64)),
        ("bert", "blk.2.attn_q.weight", (64, 64)),
        ("bert", "cls.weight", (64, 64)),
        ("nomic-bert", "blk.0.attn_qkv.bias", (192,)),
        ("nomic-bert", "blk.1.ffn_up.bias", (96,)),
        ("nomic-bert", "blk.1.ffn_gate_inp.weight", (8, 64)),
        ("nomic-bert", "position_embd.weight", (128, 64)),
    ],
)
def test_a_tensor_that_would_not_be_used_is_refused(arch: str, name: str, shape: tuple[int, ...]):
    """A bias, an expert or an adapter that is left out changes every vector silently."""
    assert name in refused(header(arch, tensors={name: shape}))


@pytest.mark.parametrize(
    ("arch", "name", "shape"),
    [
        ("bert", "token_embd.weight", (500, 32)),
        ("bert", "position_embd.weight", (64, 64)),
        ("bert", "blk.0.attn_q.weight", (64, 32)),
        ("bert", "blk.1.ffn_down.weight", (96, 64)),
        ("bert", "blk.1.ffn_up.bias", (64,)),
        ("nomic-bert", "blk.0.attn_qkv.weight", (64, 64)),
        ("nomic-bert", "blk.1.ffn_gate.weight", (64, 96)),
        ("nomic-bert", "blk.1.layer_output_norm.bias", (65,)),
        ("nomic-bert", "token_types.weight", (2, 32)),
        ("nomic-bert", "token_types.weight", (64,)),
        ("nomic-bert", "token_types.weight", ()),
        ("bert", "token_embd.weight", ()),
        ("bert", "token_embd.weight", (500,)),
    ],
)
def test_a_tensor_of_another_shape_is_refused_with_both_shapes(
    arch: str, name: str, shape: tuple[int, ...]
):
    """Transposed weights have as many values as the right ones."""
    told = refused(header(arch, tensors={name: shape}))

    assert name in told
    assert str(shape) in told


def test_token_types_may_be_any_number():
    """Only the first is used; models have one or two."""
    for n in (1, 2, 3):
        read_architecture(header("bert", tensors={"token_types.weight": (n, 64)}))


@pytest.mark.parametrize("said", [3, 0, True, "2"])
def test_a_number_of_token_types_that_is_not_the_tensors_is_refused(said: object):
    """One of the two is damaged, and the first row may be as well."""
    told = refused(header("bert", metadata={"tokenizer.ggml.token_type_count": said}))

    assert "tokenizer.ggml.token_type_count" in told


@pytest.mark.parametrize("heads", [3, 5, 64, 128])
def test_heads_that_do_not_divide_the_width_evenly_are_refused(heads: int):
    """Rotary positions turn pairs of values, so each head needs an even number."""
    told = refused(header("nomic-bert", metadata={"nomic-bert.attention.head_count": heads}))

    assert f"{heads} even-sized heads" in told


@pytest.mark.parametrize(
    "key", ["block_count", "embedding_length", "feed_forward_length", "context_length"]
)
@pytest.mark.parametrize("value", [None, 0, -1, "12", 1.5, True, 1 << 40])
def test_a_size_that_is_no_positive_number_is_refused_by_its_key(key: str, value: object):
    """The file is not trusted; a size becomes an allocation."""
    assert f"bert.{key}" in refused(header("bert", metadata={f"bert.{key}": value}))


@pytest.mark.parametrize("key", ["attention.layer_norm_epsilon", "rope.freq_base"])
@pytest.mark.parametrize("value", ["x", 0.0, -1.0, float("nan"), float("inf"), np.ones(2)])
def test_a_number_that_cannot_be_computed_with_is_refused_by_its_key(key: str, value: object):
    """NaN in a graph is NaN in every vector."""
    found = header("nomic-bert", metadata={f"nomic-bert.{key}": value})

    assert f"nomic-bert.{key}" in refused(found)


def test_a_name_that_is_no_text_is_refused():
    """A file may hold anything under any key."""
    assert "not supported" in refused(header("bert", metadata={"general.architecture": np.ones(2)}))


def test_blocks_that_are_only_claimed_cost_nothing():
    """Sixteen million blocks in a file of two: refused at the first one that is not there."""
    told = refused(header("bert", metadata={"bert.block_count": (1 << 24) - 1}))

    assert "blk.2." in told


def test_a_context_that_no_tensor_vouches_for_is_bounded():
    """Rotary models have no table of positions; their cosines would fill the memory."""
    assert "nomic-bert.context_length" in refused(
        header("nomic-bert", metadata={"nomic-bert.context_length": (1 << 24) - 1})
    )
