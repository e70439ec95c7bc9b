"""PyTorch as a peer: transformers' own model on the same weights, fed padded batches."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plimsoll.bench.comparison.naive import BATCH_TEXTS, padded, pooled
from plimsoll.encoder.architecture import Architecture, read_architecture
from plimsoll.models.builtin import BERT_BLOCK_PARTS, BERT_EMBEDDING_TENSORS
from plimsoll.sidecar.sidecar import Sidecar

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


class PyTorchPeer:
    """transformers' NomicBertModel or BertModel in inference mode."""

    def __init__(self, sidecar_folder: Path, *, n_threads: int) -> None:
        """Raises ImportError where torch or transformers is not installed."""
        import torch

        torch.set_num_threads(n_threads)
        self._torch = torch
        sidecar = Sidecar(sidecar_folder)
        architecture = read_architecture(sidecar.header)
        self._pooling = architecture.pooling.name
        self._model = _model(architecture, sidecar)
        state = {name: torch.tensor(values) for name, values in state_of(sidecar).items()}
        self._model.load_state_dict(state)
        self._model.eval()

    def encode(self, texts: Sequence[np.ndarray]) -> np.ndarray:
        """Unit vectors float32 (texts, hidden), in batches of BATCH_TEXTS in the list's order."""
        rows = []
        for start in range(0, len(texts), BATCH_TEXTS):
            ids, mask = padded(texts[start : start + BATCH_TEXTS])
            with self._torch.inference_mode():
                states = self._model(
                    input_ids=self._torch.from_numpy(ids),
                    attention_mask=self._torch.from_numpy(mask),
                ).last_hidden_state
            rows.append(pooled(states.numpy(), mask, self._pooling))
        return np.concatenate(rows)

    def release(self) -> None:
        """Nothing: PyTorch keeps what it has on a processor."""

    def predict(self, lengths: Sequence[int]) -> int:
        """Nothing: what a padded batch takes is not known before it has run."""
        return 0


def _model(architecture: Architecture, sidecar: Sidecar) -> Any:
    import transformers

    settings = configuration(architecture, sidecar)
    if architecture.rope_base is None:
        return transformers.BertModel(transformers.BertConfig(**settings), add_pooling_layer=False)
    return transformers.NomicBertModel(transformers.NomicBertConfig(**settings))


def configuration(architecture: Architecture, sidecar: Sidecar) -> dict[str, Any]:
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


def state_of(sidecar: Sidecar) -> dict[str, np.ndarray]:
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
