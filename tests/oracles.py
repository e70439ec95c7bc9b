"""Independent implementations that read the same GGUF file as the engine under test.

Each oracle is a function from token ids (special tokens included) to a unit vector,
float32 (hidden,). Nothing of Plimsoll is used here: gguf-py reads and expands the file,
transformers or llama.cpp compute. A test that asks for an oracle whose package is absent
is skipped.

How far each can be trusted: transformers computes in float32 throughout. llama.cpp does so
for float32 weights only: with quantized ones it rounds activations to 8 bits, with 16-bit
ones to 16, and it approximates BERT's GELU; it reads no more than the context length that
the file names.
"""

import os
import tarfile
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize

Embed = Callable[[list[int]], np.ndarray]


def nomic_reference(gguf_path: Path, *, scales: bool = False) -> Embed:
    """transformers' own NomicBertModel (no remote code) with mean pooling.

    scales: dynamic rope as the model card sets it, for texts past the trained length. Such a
    model keeps the base of the longest text that it has seen: take a fresh one for every text.
    """
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle")
    reader = gguf.GGUFReader(gguf_path)
    rope = {"rope_type": "default"}
    if scales:
        trained = int(_field(reader, "nomic-bert.context_length"))
        rope = {
            "rope_type": "dynamic",
            "factor": 2.0,
            "original_max_position_embeddings": trained,
        }
    config = transformers.NomicBertConfig(
        **_sizes(reader, "nomic-bert") | ({"attn_implementation": "sdpa"} if scales else {}),
        rope_parameters=rope | {"rope_theta": float(_field(reader, "nomic-bert.rope.freq_base"))},
    )
    model = transformers.NomicBertModel(config)
    return _mean_pooled(model, _nomic_state(_tensors(reader), config.num_hidden_layers))


def bert_reference(gguf_path: Path) -> Embed:
    """transformers' BertModel (erf GELU) with mean pooling."""
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle")
    reader = gguf.GGUFReader(gguf_path)
    config = transformers.BertConfig(**_sizes(reader, "bert"), hidden_act="gelu")
    model = transformers.BertModel(config, add_pooling_layer=False)
    return _mean_pooled(model, _bert_state(_tensors(reader), config.num_hidden_layers))


def llama_reference(gguf_path: Path) -> Embed:
    """llama.cpp through llama-cpp-python, pooled as the file says, without flash attention."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama.cpp is the oracle")
    reader = gguf.GGUFReader(gguf_path)
    architecture = _field(reader, "general.architecture")
    n_context = int(_field(reader, f"{architecture}.context_length"))
    llama = llama_cpp.Llama(
        str(gguf_path),
        embedding=True,
        pooling_type=llama_cpp.LLAMA_POOLING_TYPE_UNSPECIFIED,
        flash_attn=False,  # it would round keys and values to 16 bits
        n_ctx=n_context,
        n_batch=n_context,
        n_ubatch=n_context,
        n_threads=os.cpu_count(),
        n_threads_batch=os.cpu_count(),
        n_gpu_layers=0,
        verbose=False,
    )
    hidden = llama.n_embd()
    batch = llama_cpp.llama_batch_init(n_context, 0, 1)

    def embed(token_ids: list[int]) -> np.ndarray:
        if not 0 < len(token_ids) <= n_context:
            raise ValueError(f"{len(token_ids)} tokens, not 1 to {n_context}")
        batch.n_tokens = len(token_ids)
        for position, token_id in enumerate(token_ids):
            batch.token[position] = token_id
            batch.pos[position] = position
            batch.n_seq_id[position] = 1
            batch.seq_id[position][0] = 0
            batch.logits[position] = True
        if llama_cpp.llama_encode(llama.ctx, batch):
            raise RuntimeError(f"llama.cpp could not encode {len(token_ids)} tokens")
        pooled = llama_cpp.llama_get_embeddings_seq(llama.ctx, 0)
        return _unit(np.array(pooled[:hidden], dtype=np.float32))

    weakref.finalize(embed, llama_cpp.llama_batch_free, batch)
    weakref.finalize(embed, llama.close)
    return embed


def llama_tokenizer(gguf_path: Path) -> Callable[[str], list[int]]:
    """llama.cpp's ids of a text, special tokens included, and read as such in the text."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama.cpp is the oracle")
    llama = llama_cpp.Llama(str(gguf_path), vocab_only=True, verbose=False)
    return lambda text: llama.tokenize(text.encode(), add_bos=True, special=True)


def llama_sources() -> dict[str, str]:
    """llama.cpp's own sources, by their path below src/, from the package's source archive.

    Skips the calling test where scripts/oracles has not fetched it.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    archives = sorted((cache / "plimsoll-oracles" / "sources").glob("llama_cpp_python-*.tar.gz"))
    if not archives:
        pytest.skip("llama.cpp's sources are not here; scripts/oracles fetches them")
    with tarfile.open(archives[-1]) as archive:
        found = {}
        for member in archive:
            _, _, path = member.name.partition("/vendor/llama.cpp/src/")
            file = archive.extractfile(member) if path.endswith(".cpp") else None
            if file is not None:
                found[path] = file.read().decode()
    return found


def _unit(vector: np.ndarray) -> np.ndarray:
    return (vector / np.linalg.norm(vector.astype(np.float64))).astype(np.float32)


def _field(reader: gguf.GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    if field is None:
        raise KeyError(f"{key} is not in the file")
    return field.contents()


def _sizes(reader: gguf.GGUFReader, architecture: str) -> dict[str, Any]:
    """Read the part of a transformers configuration that both architectures share."""

    def value(key: str) -> Any:
        return _field(reader, f"{architecture}.{key}")

    return {
        "vocab_size": len(reader.fields["tokenizer.ggml.tokens"].data),
        "hidden_size": value("embedding_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": value("attention.head_count"),
        "intermediate_size": value("feed_forward_length"),
        "max_position_embeddings": value("context_length"),
        "type_vocab_size": _field(reader, "tokenizer.ggml.token_type_count"),
        "layer_norm_eps": float(value("attention.layer_norm_epsilon")),
        "attn_implementation": "eager",
    }


def _tensors(reader: gguf.GGUFReader) -> dict[str, np.ndarray]:
    """Expand every tensor by gguf-py, float32, rows first."""
    return {
        tensor.name: dequantize(tensor.data, tensor.tensor_type).reshape(
            [int(size) for size in reversed(tensor.shape)]
        )
        for tensor in reader.tensors
    }


def _both(target: str, source: str) -> dict[str, str]:
    return {f"{target}.{part}": f"{source}.{part}" for part in ("weight", "bias")}


def _nomic_state(tensors: Mapping[str, np.ndarray], n_layers: int) -> dict[str, np.ndarray]:
    names = {
        "embeddings.word_embeddings.weight": "token_embd.weight",
        "embeddings.token_type_embeddings.weight": "token_types.weight",
    } | _both("embeddings.LayerNorm", "token_embd_norm")
    state = {}
    for layer in range(n_layers):
        target, source = f"layers.{layer}", f"blk.{layer}"
        names |= {
            f"{target}.self_attn.o_proj.weight": f"{source}.attn_output.weight",
            f"{target}.mlp.gate_proj.weight": f"{source}.ffn_gate.weight",
            f"{target}.mlp.up_proj.weight": f"{source}.ffn_up.weight",
            f"{target}.mlp.down_proj.weight": f"{source}.ffn_down.weight",
        }
        names |= _both(f"{target}.post_attention_layernorm", f"{source}.attn_output_norm")
        names |= _both(f"{target}.post_mlp_layernorm", f"{source}.layer_output_norm")
        parts = np.split(tensors[f"{source}.attn_qkv.weight"], 3)
        for part, rows in zip("qkv", parts, strict=True):
            state[f"{target}.self_attn.{part}_proj.weight"] = rows
    return state | {target: tensors[source] for target, source in names.items()}


def _bert_state(tensors: Mapping[str, np.ndarray], n_layers: int) -> dict[str, np.ndarray]:
    names = {
        "embeddings.word_embeddings.weight": "token_embd.weight",
        "embeddings.position_embeddings.weight": "position_embd.weight",
        "embeddings.token_type_embeddings.weight": "token_types.weight",
    } | _both("embeddings.LayerNorm", "token_embd_norm")
    for layer in range(n_layers):
        target, source = f"encoder.layer.{layer}", f"blk.{layer}"
        for part, module in (
            ("attn_q", "attention.self.query"),
            ("attn_k", "attention.self.key"),
            ("attn_v", "attention.self.value"),
            ("attn_output", "attention.output.dense"),
            ("attn_output_norm", "attention.output.LayerNorm"),
            ("ffn_up", "intermediate.dense"),
            ("ffn_down", "output.dense"),
            ("layer_output_norm", "output.LayerNorm"),
        ):
            names |= _both(f"{target}.{module}", f"{source}.{part}")
    return {target: tensors[source] for target, source in names.items()}


def _mean_pooled(model: Any, state: Mapping[str, np.ndarray]) -> Embed:
    torch = pytest.importorskip("torch", reason="transformers computes with torch")
    model.load_state_dict({name: torch.tensor(values) for name, values in state.items()})
    model.eval()

    def embed(token_ids: list[int]) -> np.ndarray:
        with torch.inference_mode():
            states = model(input_ids=torch.tensor([token_ids])).last_hidden_state  # (1, n, hidden)
        return _unit(states[0].double().mean(dim=0).numpy())

    return embed
