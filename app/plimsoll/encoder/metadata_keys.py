"""Every metadata key that may change vectors, and what becomes of it.

Pure: metadata in, a refusal out. One table, so that no key is ignored: a key is applied by the
module that the table names, or has no part in vectors, or is refused by its name where it has
another value than the one that is built. A key of the model or the tokenizer that is not in the
table is refused as well, since it may mean anything; keys outside these namespaces say where
the file comes from.

The keys are those that llama.cpp's loader reads for `bert` and `nomic-bert` (llama-model.cpp,
llama-vocab.cpp, llama-model-loader.cpp), and what converters write beside them; a test
compares the two.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from plimsoll.errors import ModelUnsupportedError

MODEL_NAMESPACE = "{arch}."
TOKENIZER = "tokenizer."


@dataclass(frozen=True)
class Applied:
    """Vectors follow it: the named module reads the key and refuses values that cannot be.

    only: the values that are built, where the module does not check that itself.
    """

    by: str
    only: tuple[object, ...] | None = None


@dataclass(frozen=True)
class Irrelevant:
    """No vector depends on it."""

    because: str


@dataclass(frozen=True)
class Neutral:
    """Accepted where it changes nothing, refused otherwise.

    only: values that say what is built anyway; none: the key is refused with any value.
    same: a property of the architecture that it must repeat, by its name in `Built`.
    remedy: what the user can do.
    """

    only: tuple[object, ...] = ()
    same: str | None = None
    remedy: str = ""


Rule = Applied | Irrelevant | Neutral

Built = Mapping[str, object]
"""What the architecture has, by the names below: keys may repeat it and not change it."""

WIDTH, HEADS, HEAD_SIZE = "the model's width", "the number of heads", "the size of a head"
ACTIVATION = "the feed-forward's function"

_NO_EXPERTS = Neutral(only=(0,))
_OTHER_TOKENIZER = Irrelevant("for other kinds of tokenizer than WordPiece")
_ENDS = Irrelevant("a WordPiece text stands between its two ends in any case")
_GENERATION = Irrelevant("for models that write text")
_ONLY_YARN = Irrelevant("read where rope.scaling.type is yarn, which is refused")

FILE_KEYS: Mapping[str, Rule] = MappingProxyType(
    {
        "split.count": Neutral(
            only=(0, 1),
            remedy="this file is a part of a split model; join the parts: "
            "llama-gguf-split --merge FIRST-PART.gguf JOINED.gguf",
        ),
        "split.no": Neutral(only=(0,), remedy="this file is a part of a split model"),
        "split.tensors.count": Irrelevant("the tensors are compared with the architecture's own"),
        "general.type": Neutral(only=("model",)),
        "adapter.type": Neutral(remedy="this file is an adapter, to be merged into its model"),
        "general.architecture": Applied("architecture"),
        "general.alignment": Applied("gguf.reader"),
        "general.name": Applied("catalog"),
        "general.file_type": Irrelevant("each tensor has a type of its own"),
        "general.tensor_extra.name": Irrelevant("activations are float32 here"),
        "general.tensor_extra.prec_a4": Irrelevant("activations are float32 here"),
    }
)

MODEL_KEYS: Mapping[str, Rule] = MappingProxyType(
    {
        # --- sizes ------------------------------------------------------------------------
        "{arch}.block_count": Applied("architecture"),
        "{arch}.context_length": Applied("architecture"),
        "{arch}.embedding_length": Applied("architecture"),
        "{arch}.feed_forward_length": Applied("architecture"),
        "{arch}.attention.head_count": Applied("architecture"),
        "{arch}.attention.layer_norm_epsilon": Applied("architecture"),
        "{arch}.pooling_type": Applied("architecture"),
        "{arch}.embedding_length_out": Neutral(same=WIDTH),
        "{arch}.attention.head_count_kv": Neutral(same=HEADS),
        "{arch}.attention.key_length": Neutral(same=HEAD_SIZE),
        "{arch}.attention.value_length": Neutral(same=HEAD_SIZE),
        "{arch}.attention.key_length_swa": Neutral(same=HEAD_SIZE),
        "{arch}.attention.value_length_swa": Neutral(same=HEAD_SIZE),
        "{arch}.vocab_size": Irrelevant("the embedding table has as many rows as it has"),
        "{arch}.normalize_embeddings": Irrelevant("vectors are of unit length in any case"),
        # --- rotary positions; models with learned ones do not rotate -----------------------
        "{arch}.rope.freq_base": Applied("architecture"),
        "{arch}.rope.scaling.type": Applied("architecture", only=("none", "linear")),
        "{arch}.rope.scaling.factor": Applied("architecture"),
        "{arch}.rope.scale_linear": Applied("architecture"),
        "{arch}.rope.scaling.attn_factor": Neutral(only=(1,)),
        "{arch}.rope.dimension_count": Neutral(same=HEAD_SIZE),
        "{arch}.rope.dimension_count_swa": Neutral(same=HEAD_SIZE),
        "{arch}.rope.scaling.original_context_length": _ONLY_YARN,
        "{arch}.rope.scaling.finetuned": Irrelevant("how the model was trained"),
        "{arch}.rope.scaling.alpha": Neutral(only=(0,)),
        # --- what other models do and these do not --------------------------------------------
        "{arch}.attention.causal": Neutral(only=(False,)),
        "{arch}.attention.layer_norm_rms_epsilon": Neutral(),
        "{arch}.attention.group_norm_epsilon": Neutral(),
        "{arch}.attention.max_alibi_bias": Neutral(only=(0,)),
        "{arch}.attention.clamp_kqv": Neutral(only=(0,)),
        "{arch}.attention.sliding_window": Neutral(only=(0,)),
        "{arch}.attention.sliding_window_pattern": Neutral(only=(0, False)),
        "{arch}.attn_logit_softcapping": Neutral(only=(0,)),
        "{arch}.use_parallel_residual": Neutral(only=(False,)),
        "{arch}.hidden_activation": Neutral(same=ACTIVATION),
        "{arch}.embedding_scale": Neutral(only=(1,)),
        "{arch}.residual_scale": Neutral(only=(1,)),
        "{arch}.logit_scale": _GENERATION,
        "{arch}.nextn_predict_layers": Neutral(only=(0,)),
        "{arch}.expert_count": _NO_EXPERTS,
        "{arch}.expert_used_count": _NO_EXPERTS,
        "{arch}.expert_shared_count": _NO_EXPERTS,
        "{arch}.expert_group_count": _NO_EXPERTS,
        "{arch}.expert_group_used_count": _NO_EXPERTS,
        "{arch}.moe_every_n_layers": _NO_EXPERTS,
        "{arch}.leading_dense_block_count": _NO_EXPERTS,
        "{arch}.classifier.output_labels": Irrelevant("a classifier's tensors are refused"),
        "{arch}.classifier.pooling_type": Irrelevant("read where pooling_type is rank"),
        # --- WordPiece ------------------------------------------------------------------------
        "tokenizer.ggml.model": Applied("vocabulary"),
        "tokenizer.ggml.tokens": Applied("vocabulary"),
        "tokenizer.ggml.token_type": Applied("vocabulary"),
        "tokenizer.ggml.token_type_count": Applied("architecture"),
        "tokenizer.ggml.normalizer.lowercase": Applied("vocabulary"),
        "tokenizer.ggml.normalizer.strip_accents": Applied("vocabulary"),
        "tokenizer.ggml.bos_token_id": Applied("vocabulary"),
        "tokenizer.ggml.cls_token_id": Applied("vocabulary"),
        "tokenizer.ggml.seperator_token_id": Applied("vocabulary"),
        "tokenizer.ggml.unknown_token_id": Applied("vocabulary"),
        "tokenizer.ggml.padding_token_id": Applied("vocabulary"),
        "tokenizer.ggml.mask_token_id": Applied("vocabulary"),
        "tokenizer.ggml.eos_token_id": Irrelevant("WordPiece ends a text with its separator"),
        "tokenizer.ggml.add_bos_token": _ENDS,
        "tokenizer.ggml.add_eos_token": _ENDS,
        "tokenizer.ggml.add_sep_token": _ENDS,
        "tokenizer.ggml.pre": _OTHER_TOKENIZER,
        "tokenizer.ggml.scores": _OTHER_TOKENIZER,
        "tokenizer.ggml.merges": _OTHER_TOKENIZER,
        "tokenizer.ggml.add_space_prefix": _OTHER_TOKENIZER,
        "tokenizer.ggml.remove_extra_whitespaces": _OTHER_TOKENIZER,
        "tokenizer.ggml.precompiled_charsmap": _OTHER_TOKENIZER,
        "tokenizer.huggingface.json": Irrelevant("the same tokenizer in another form"),
        "tokenizer.rwkv.world": _OTHER_TOKENIZER,
        "tokenizer.ggml.suppress_tokens": _GENERATION,
        "tokenizer.chat_template": _GENERATION,
        "tokenizer.chat_templates": _GENERATION,
        **{
            f"tokenizer.ggml.{name}_token_id": _GENERATION
            for name in (
                *("eot", "eom", "prefix", "suffix", "middle"),
                *("fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep"),
            )
        },
    }
)
_CHAT_TEMPLATES = "tokenizer.chat_template."  # with the name of one behind it


def refuse_other_files(metadata: Mapping[str, Any]) -> None:
    """Refuse a file that is not one whole model, of any architecture.

    Raises ModelUnsupportedError with the key.
    """
    for key, rule in FILE_KEYS.items():
        if key in metadata:
            _check(key, metadata[key], rule, {})


def refuse_unbuilt_keys(metadata: Mapping[str, Any], architecture: str, built: Built) -> None:
    """Refuse a file with a key that would change vectors and is not applied.

    Raises ModelUnsupportedError with the key.
    """
    namespace = f"{architecture}."
    for key, value in metadata.items():
        if key.startswith(namespace):
            rule = MODEL_KEYS.get(MODEL_NAMESPACE + key.removeprefix(namespace))
        elif key.startswith(TOKENIZER):
            rule = _GENERATION if key.startswith(_CHAT_TEMPLATES) else MODEL_KEYS.get(key)
        else:
            continue
        if rule is None:
            raise ModelUnsupportedError(
                f"metadata {key} is not known here and may change vectors; where it does not, "
                f"take it out: gguf-new-metadata --remove-metadata {key} OLD.gguf NEW.gguf"
            )
        _check(key, value, rule, built)


def _check(key: str, value: Any, rule: Rule, built: Built) -> None:
    match rule:
        case Irrelevant() | Applied(only=None):
            return
        case Neutral(same=str() as same):
            accepted, remedy = (built[same],), f"only {_shown(built[same])}, {same}, is built"
        case Neutral(only=accepted, remedy=remedy):
            pass
        case Applied(only=tuple() as accepted):
            remedy = ""
    if not _is_one_of(value, accepted):
        if not remedy:
            choice = " or ".join(map(_shown, accepted))
            remedy = f"only {choice} is built" if accepted else "that is not built"
        raise ModelUnsupportedError(f"metadata {key} is {_shown(value)}; {remedy}")


def _is_one_of(value: Any, accepted: tuple[object, ...]) -> bool:
    """Whether a value, or each of a list with one for every block, is one of those accepted.

    True is not 1 here: a file with the wrong type is not what its author meant.
    """
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list):
        return bool(value) and all(_is_one_of(each, accepted) for each in value)
    return any(
        isinstance(value, bool) is isinstance(one, bool) and value == one for one in accepted
    )


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value.tolist() if isinstance(value, np.ndarray) else value)
    return text if len(text) <= 80 else f"{text[:80]}…"
