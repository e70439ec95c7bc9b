"""The same weights in a folder as sentence-transformers saves one; infinity takes it too."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import BertWordPieceTokenizer

from plimsoll.bench.comparison.models import ModelCase
from plimsoll.encoder.architecture import Architecture, read_architecture
from plimsoll.encoder.vocabulary import read_vocabulary
from plimsoll.models.builtin import BERT_BLOCK_PARTS, BERT_EMBEDDING_TENSORS
from plimsoll.sidecar.sidecar import Sidecar

TOKENIZER = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
    "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
}
MODULES = [
    {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
    for place, (path, kind) in enumerate(
        (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    )
]
POOLING_FLAGS = {
    "MEAN": "pooling_mode_mean_tokens",
    "CLS": "pooling_mode_cls_token",
    "LAST": "pooling_mode_lasttoken",
}
_NOMIC_PARTS = {
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
    "attn_output_norm.weight": "post_attention_layernorm.weight",
    "attn_output_norm.bias": "post_attention_layernorm.bias",
    "layer_output_norm.weight": "post_mlp_layernorm.weight",
    "layer_output_norm.bias": "post_mlp_layernorm.bias",
}


def transformers_folder(case: ModelCase) -> Path:
    """The model as sentence-transformers saves one; written unless it is there."""
    folder = case.naive_path.with_suffix(".transformers")
    if folder.is_dir():
        return folder
    partial = folder.with_suffix(".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "1_Pooling").mkdir(parents=True)
    (partial / "2_Normalize").mkdir()
    sidecar = Sidecar(case.sidecar_folder)
    architecture = read_architecture(sidecar.header)
    is_bert = architecture.rope_base is None
    names = ("bert", "BertModel") if is_bert else ("nomic_bert", "NomicBertModel")
    kind = {"model_type": names[0], "architectures": [names[1]], "torch_dtype": "float32"}
    _write(partial / "config.json", kind | _configuration(architecture, sidecar))
    state = {name: np.ascontiguousarray(values) for name, values in _state_of(sidecar).items()}
    save_file(state, partial / "model.safetensors", {"format": "pt"})
    vocabulary = read_vocabulary(sidecar.header.metadata)
    BertWordPieceTokenizer(
        dict(vocabulary.ids),
        lowercase=vocabulary.normalizer.lowercase,
        strip_accents=vocabulary.normalizer.strip_accents,
    ).save(str(partial / "tokenizer.json"))
    _write(partial / "tokenizer_config.json", TOKENIZER | {"model_max_length": case.token_limit})
    _write(partial / "modules.json", MODULES)
    _write(partial / "sentence_bert_config.json", {"max_seq_length": case.token_limit})
    pooling = {"word_embedding_dimension": architecture.hidden}
    flags = {flag: case.pooling == name for name, flag in POOLING_FLAGS.items()}
    _write(partial / "1_Pooling" / "config.json", pooling | flags)
    del state
    sidecar.close()
    return partial.rename(folder)


def _write(path: Path, document: object) -> None:
    path.write_text(json.dumps(document), encoding="utf-8")


def _configuration(architecture: Architecture, sidecar: Sidecar) -> dict[str, Any]:
    """What transformers' configuration of the model holds beside its defaults."""
    settings: dict[str, Any] = {
        "vocab_size": architecture.vocabulary,
        "hidden_size": architecture.hidden,
        "num_hidden_layers": architecture.n_layers,
        "num_attention_heads": architecture.n_heads,
        "intermediate_size": architecture.ffn,
        "max_position_embeddings": architecture.context_tokens,
        "type_vocab_size": len(sidecar.array("token_types.weight")),
        "layer_norm_eps": architecture.layer_norm_eps,
    }
    if architecture.rope_base is None:
        return settings | {"hidden_act": "gelu"}
    rope = {"rope_type": "default", "rope_theta": architecture.rope_base}
    return settings | {"rope_parameters": rope}


def _state_of(sidecar: Sidecar) -> dict[str, np.ndarray]:
    """transformers' parameter name → weights."""
    state = {}
    for name in sidecar.index.tensors:
        values = sidecar.array(name)
        if name in BERT_EMBEDDING_TENSORS:
            state[BERT_EMBEDDING_TENSORS[name]] = values
            continue
        _, layer, part = name.split(".", 2)
        if part == "attn_qkv.weight":
            for letter, rows in zip("qkv", np.split(values, 3), strict=True):
                state[f"layers.{layer}.self_attn.{letter}_proj.weight"] = rows
        elif "blk.0.attn_qkv.weight" in sidecar.index.tensors:
            state[f"layers.{layer}.{_NOMIC_PARTS[part]}"] = values
        else:
            module, kind = part.split(".")
            state[f"encoder.layer.{layer}.{BERT_BLOCK_PARTS[module]}.{kind}"] = values
    return state
