"""The table of metadata keys: what is refused by name, and that llama.cpp reads no other."""

import re
from typing import Any

import numpy as np
import pytest

from plimsoll.encoder.architecture import read_architecture
from plimsoll.encoder.metadata_keys import FILE_KEYS, MODEL_KEYS
from plimsoll.errors import ModelUnsupportedError
from tests.encoder.test_architecture import SHAPE, header
from tests.oracles import llama_sources

HEAD_SIZE = SHAPE.hidden // SHAPE.heads

# What llama.cpp reads for `bert` and `nomic-bert`, found by `keys_in_source` in the sources that
# llama-cpp-python 0.3.36 brings. "%s" stands for the architecture.
LLAMA_CPP_KEYS = """
general.architecture general.file_type general.name general.tensor_extra.name
general.tensor_extra.prec_a4 split.count split.no split.tensors.count %s.attention.causal
%s.attention.head_count %s.attention.head_count_kv %s.attention.key_length
%s.attention.key_length_swa %s.attention.layer_norm_epsilon %s.attention.value_length
%s.attention.value_length_swa %s.block_count %s.classifier.output_labels
%s.classifier.pooling_type %s.context_length %s.embedding_length %s.embedding_length_out
%s.expert_count %s.expert_group_count %s.expert_group_used_count %s.expert_used_count
%s.feed_forward_length %s.nextn_predict_layers %s.pooling_type %s.rope.dimension_count
%s.rope.dimension_count_swa %s.rope.freq_base %s.rope.scale_linear %s.rope.scaling.alpha
%s.rope.scaling.attn_factor %s.rope.scaling.factor %s.rope.scaling.finetuned
%s.rope.scaling.original_context_length %s.rope.scaling.type %s.vocab_size
tokenizer.ggml.add_bos_token tokenizer.ggml.add_eos_token tokenizer.ggml.add_sep_token
tokenizer.ggml.add_space_prefix tokenizer.ggml.bos_token_id tokenizer.ggml.eom_token_id
tokenizer.ggml.eos_token_id tokenizer.ggml.eot_token_id tokenizer.ggml.fim_mid_token_id
tokenizer.ggml.fim_pad_token_id tokenizer.ggml.fim_pre_token_id
tokenizer.ggml.fim_rep_token_id tokenizer.ggml.fim_sep_token_id
tokenizer.ggml.fim_suf_token_id tokenizer.ggml.mask_token_id tokenizer.ggml.merges
tokenizer.ggml.middle_token_id tokenizer.ggml.model tokenizer.ggml.normalizer.lowercase
tokenizer.ggml.normalizer.strip_accents tokenizer.ggml.padding_token_id tokenizer.ggml.pre
tokenizer.ggml.precompiled_charsmap tokenizer.ggml.prefix_token_id
tokenizer.ggml.remove_extra_whitespaces tokenizer.ggml.scores
tokenizer.ggml.seperator_token_id tokenizer.ggml.suffix_token_id
tokenizer.ggml.suppress_tokens tokenizer.ggml.token_type tokenizer.ggml.token_type_count
tokenizer.ggml.tokens tokenizer.ggml.unknown_token_id
"""


def refusal(arch: str, **keys: object) -> str:
    """What is told of a file with these keys, their dots written as two underscores."""
    said = {key.replace("__", "."): value for key, value in keys.items()}
    with pytest.raises(ModelUnsupportedError) as error:
        read_architecture(header(arch, metadata=said))
    return str(error.value)


REFUSED: list[tuple[str, Any]] = [
    ("rope.scaling.type", "yarn"),
    ("rope.scaling.type", "longrope"),
    ("rope.scaling.type", 1),
    ("rope.scaling.attn_factor", 0.5),
    ("rope.scaling.alpha", 2.0),
    ("rope.scaling.yarn_log_multiplier", 0.1),
    ("rope.dimension_count", HEAD_SIZE // 2),
    ("rope.dimension_count_swa", HEAD_SIZE // 2),
    ("rope.dimension_sections", np.array([4, 4, 4, 4])),
    ("attention.head_count_kv", 1),
    ("attention.head_count_kv", np.array([SHAPE.heads, 1])),
    ("attention.key_length", HEAD_SIZE * 2),
    ("attention.value_length", HEAD_SIZE * 2),
    ("attention.causal", True),
    ("attention.causal", 0),
    ("attention.layer_norm_rms_epsilon", 1e-6),
    ("attention.group_norm_epsilon", 1e-6),
    ("attention.max_alibi_bias", 8.0),
    ("attention.clamp_kqv", 8.0),
    ("attention.sliding_window", 128),
    ("attention.scale", 0.1),
    ("attn_logit_softcapping", 30.0),
    ("use_parallel_residual", True),
    ("hidden_activation", "relu"),
    ("embedding_scale", 2.0),
    ("embedding_length_out", SHAPE.hidden // 2),
    ("expert_count", 8),
    ("expert_used_count", 2),
    ("moe_every_n_layers", 2),
    ("nextn_predict_layers", 1),
    ("dense_2_feat_in", 768),
    ("a_key_of_next_year", 1),
]


@pytest.mark.parametrize("arch", ["bert", "nomic-bert"])
@pytest.mark.parametrize(("key", "value"), REFUSED, ids=[f"{key}={v}" for key, v in REFUSED])
def test_a_key_that_changes_vectors_and_is_not_built_is_refused_by_name(
    arch: str, key: str, value: object
):
    """Ignored, it gave vectors as far as cosine 0.31 from llama.cpp's, and nothing said so."""
    assert f"{arch}.{key}" in refusal(arch, **{f"{arch}.{key}": value})


ACCEPTED: list[tuple[str, Any]] = [
    ("rope.scaling.type", "none"),
    ("rope.scaling.attn_factor", 1.0),
    ("rope.scaling.original_context_length", 512),
    ("rope.dimension_count", HEAD_SIZE),
    ("attention.head_count_kv", SHAPE.heads),
    ("attention.head_count_kv", np.array([SHAPE.heads] * SHAPE.n_layers)),
    ("attention.key_length", HEAD_SIZE),
    ("attention.value_length", HEAD_SIZE),
    ("attention.causal", False),
    ("embedding_length_out", SHAPE.hidden),
    ("expert_count", 0),
    ("vocab_size", SHAPE.vocab),
]


@pytest.mark.parametrize("arch", ["bert", "nomic-bert"])
@pytest.mark.parametrize(("key", "value"), ACCEPTED, ids=[f"{key}={v}" for key, v in ACCEPTED])
def test_a_key_that_says_what_is_built_anyway_changes_nothing(arch: str, key: str, value: object):
    """Converters write many that say the default."""
    said = header(arch, metadata={f"{arch}.{key}": value})

    assert read_architecture(said) == read_architecture(header(arch))


def test_the_activation_is_that_of_the_family():
    """BERT has GELU, Nomic SiLU behind a gate; the other way round neither is built."""
    read_architecture(header("bert", metadata={"bert.hidden_activation": "gelu"}))
    read_architecture(header("nomic-bert", metadata={"nomic-bert.hidden_activation": "silu"}))

    assert "bert.hidden_activation" in refusal("bert", bert__hidden_activation="silu")


def test_a_part_of_a_split_model_is_refused_with_the_way_to_join_it():
    """Its tensors are not all there, and those that are would be expanded for nothing."""
    told = refusal("bert", split__count=3, split__no=0)

    assert "split.count is 3" in told
    assert "llama-gguf-split --merge" in told
    # Only the first part says what it is a part of.
    assert "llama-gguf-split" in refusal("bert", general__architecture=None, split__count=3)


def test_a_split_of_one_part_is_a_whole_model():
    """llama.cpp reads it as such."""
    read_architecture(header("bert", metadata={"split.count": 1, "split.no": 0}))


@pytest.mark.parametrize(("key", "value"), [("general.type", "adapter"), ("adapter.type", "lora")])
def test_a_file_that_is_no_model_is_refused_by_what_it_says(key: str, value: str):
    """An adapter has the architecture of the model that it belongs to."""
    assert key in refusal("bert", **{key: value})


def test_an_unknown_key_of_the_tokenizer_is_refused_with_the_way_to_take_it_out():
    """A normaliser of next year changes every id."""
    told = refusal("bert", tokenizer__ggml__normalizer__nfkc=True)

    assert "--remove-metadata tokenizer.ggml.normalizer.nfkc" in told


@pytest.mark.parametrize(
    "key",
    ["general.url", "general.base_model.0.name", "quantize.imatrix.file", "llama.expert_count"],
)
def test_keys_that_say_where_a_file_comes_from_are_let_be(key: str):
    """And those of another architecture, which nothing reads."""
    read_architecture(header("bert", metadata={key: 8}))


def test_a_long_value_is_cut_in_what_is_told():
    """A hostile file may hold megabytes under any key."""
    assert len(refusal("bert", bert__expert_count="x" * 100_000)) < 300


# --- llama.cpp's own list --------------------------------------------------------------------


def test_every_key_that_llama_cpp_reads_has_its_place_in_the_table():
    """One that is not there would be ignored, or refused without need."""
    table = {key.replace("{arch}", "%s") for key in (*FILE_KEYS, *MODEL_KEYS)}

    assert set(LLAMA_CPP_KEYS.split()) - table == set()


@pytest.mark.oracles
def test_the_list_of_llama_cpps_keys_is_what_its_source_reads():
    """A newer version may read more."""
    assert keys_in_source(llama_sources()) == set(LLAMA_CPP_KEYS.split())


def keys_in_source(sources: dict[str, str]) -> set[str]:
    """Names of the keys that are read when a `bert` or `nomic-bert` file is loaded."""
    names = dict(re.findall(r'\{ (LLM_KV_\w+), +"([^"]+)" +\}', sources["llama-arch.cpp"]))
    numbers = function(sources["llama-model.cpp"], "void llama_model_base::load_hparams(")
    # A block of another architecture, which has a name for its tensors that no other has.
    other = re.compile(r"if \(arch == LLM_ARCH_WAVTOKENIZER_DEC\) \{.*?\n    \}", re.DOTALL)
    read = [
        other.sub("", numbers),
        function(sources["llama-model.cpp"], "void llama_prec_policy::load("),
        function(sources["models/bert.cpp"], "::load_arch_hparams("),
        function(sources["models/nomic-bert.cpp"], "::load_arch_hparams("),
        function(sources["llama-vocab.cpp"], "void llama_vocab::impl::load("),
        sources["llama-model-loader.cpp"],
    ]
    written = {kv for text in read for kv in re.findall(r"\bLLM_KV_[A-Z0-9_]+", text)}
    return {names[kv] for kv in written & names.keys()}  # comments write parts of names


def function(source: str, head: str) -> str:
    """The text of one function, to the brace at the start of a line that ends it."""
    start = source.index(head)
    return source[start : source.index("\n}\n", start)]
