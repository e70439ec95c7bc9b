"""Synthetic GGUF files in the shape of published encoders: seeded, never trained.

Metadata keys, their order, tensor names and the phantom-space vocabulary are those of
nomic-embed-text-v1.5's published GGUF files (nomic-bert) and of llama.cpp's converter
(bert). Weights are random, at scales that keep activations near unit variance, with a few
outliers such as trained encoders have; the same seed gives the same weights in every type.
"""

import hashlib
import itertools
import os
import unicodedata
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.quants import quantize

FORMAT = 2  # part of every cached name: raise it when the files' content changes


@dataclass(frozen=True)
class Shape:
    """The sizes that make up an encoder; hidden / heads must be even, hidden a multiple of 32."""

    n_layers: int
    hidden: int
    ffn: int
    heads: int
    vocab: int
    context: int = 2048
    rope_base: float = 1000.0
    eps: float = 1e-12
    pooling: gguf.PoolingType = gguf.PoolingType.MEAN


NOMIC_SHAPE = Shape(n_layers=12, hidden=768, ffn=3072, heads=12, vocab=30_528)
MINILM_SHAPE = Shape(n_layers=6, hidden=384, ffn=1536, heads=12, vocab=30_522, context=512)
SMALL_SHAPE = Shape(n_layers=2, hidden=256, ffn=512, heads=4, vocab=4_096, context=512)
TINY_SHAPE = Shape(n_layers=2, hidden=64, ffn=128, heads=4, vocab=2_048, context=512)

PAD, UNK, CLS, SEP, MASK = 0, 100, 101, 102, 103
SPECIAL_TOKENS = {PAD: "[PAD]", UNK: "[UNK]", CLS: "[CLS]", SEP: "[SEP]", MASK: "[MASK]"}

_FILE_TYPES = {  # those that gguf-py can write
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "BF16": gguf.LlamaFileType.MOSTLY_BF16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
    "Q4_1": gguf.LlamaFileType.MOSTLY_Q4_1,
    "Q5_0": gguf.LlamaFileType.MOSTLY_Q5_0,
    "Q5_1": gguf.LlamaFileType.MOSTLY_Q5_1,
}
LLAMA_FILE_TYPES = {  # those that llama.cpp mixes as its users get them
    "Q2_K": gguf.LlamaFileType.MOSTLY_Q2_K,
    "Q3_K_M": gguf.LlamaFileType.MOSTLY_Q3_K_M,
    "Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
    "Q4_K_M": gguf.LlamaFileType.MOSTLY_Q4_K_M,
    "Q5_0": gguf.LlamaFileType.MOSTLY_Q5_0,
    "Q5_K_M": gguf.LlamaFileType.MOSTLY_Q5_K_M,
    "Q6_K": gguf.LlamaFileType.MOSTLY_Q6_K,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "IQ4_NL": gguf.LlamaFileType.MOSTLY_IQ4_NL,
    "IQ4_XS": gguf.LlamaFileType.MOSTLY_IQ4_XS,
}
_ALWAYS_FLOAT32 = {"token_types.weight", "position_embd.weight"}
# Standard deviations of embeddings: what all texts share is kept small against the tokens.
_DEVIATIONS = {"token_embd": 0.05, "position_embd": 0.02, "token_types": 0.01}
# Standard deviation of a linear layer times the root of its inputs, 1 keeps unit variance:
# attention sharp enough to choose, branches small enough beside the residual that rounding
# errors do not grow from layer to layer.
_GAINS = {
    **dict.fromkeys(("attn_qkv", "attn_q", "attn_k", "attn_v"), 1.1),
    "attn_output": 0.5,
    "ffn_down": 0.35,
}
_CHUNK_ROWS = 4096  # rows quantized at a time


def write_synthetic(
    path: Path,
    *,
    arch: str = "nomic-bert",
    quant: str = "F32",
    seed: int = 0,
    shape: Shape = NOMIC_SHAPE,
    vocab: Sequence[str] | Path | None = None,
    name: str | None = None,
    metadata: Mapping[str, object] | None = None,
    fused_qkv: bool | None = None,
    without: Collection[str] = (),
) -> Path:
    """Write one model.

    arch: "nomic-bert" or "bert". quant: a key of _FILE_TYPES; as in llama.cpp only
    two-dimensional weights take it, position and type embeddings stay float32.
    vocab: WordPiece tokens ("##" continues a word), or a vocab.txt; generated when not
    given, filled with unused tokens up to the shape's size. name: what the file calls itself.
    metadata: keys to add or change; None takes one out. fused_qkv: the same weights in one
    matrix a block, or in three; as the architecture has them when not given.
    without: names of tensors to leave out.
    """
    tokens = _tokens(shape, vocab)
    writer = gguf.GGUFWriter(path, arch)
    _add_metadata(writer, arch, quant, shape, name or f"synthetic-{arch}")
    _add_tokenizer(writer, tokens)
    change_metadata(writer, metadata or {})
    tensors = tensor_shapes(arch, shape, fused_qkv=fused_qkv)
    for left_out in without:
        del tensors[left_out]
    for name, dimensions in tensors.items():
        type_ = _stored_type(name, dimensions, quant)
        stored = gguf.quant_shape_to_byte_shape(dimensions, type_)
        n_bytes = int(np.prod(stored))
        writer.add_tensor_info(name, stored, np.dtype(np.uint8), n_bytes, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, dimensions in tensors.items():
        values = _stored_values(arch, name, dimensions, seed)
        writer.write_tensor_data(_encode(values, _stored_type(name, dimensions, quant)))
    writer.close()
    return path


def change_metadata(writer: gguf.GGUFWriter, changes: Mapping[str, object]) -> None:
    """Add or change keys as their Python types say, whole numbers without sign; None: remove."""
    (keys,) = writer.kv_data
    for key, value in changes.items():
        keys.pop(key, None)
        if value is None:
            continue
        kind = gguf.GGUFValueType.get_type(value)
        if kind is gguf.GGUFValueType.INT32 and isinstance(value, int) and value >= 0:
            kind = gguf.GGUFValueType.UINT32  # what llama.cpp insists on
        writer.add_key_value(key, value, kind)


def cached_synthetic(
    cache_dir: Path,
    *,
    arch: str = "nomic-bert",
    quant: str = "F32",
    seed: int = 0,
    shape: Shape = NOMIC_SHAPE,
    vocab: Sequence[str] | Path | None = None,
    name: str | None = None,
) -> Path:
    """Return the model from `cache_dir`, written there first if need be.

    K-quants (Q6_K, Q5_K_M, Q4_K_M …) are made by llama.cpp from the float32 file.
    The file appears complete or not at all.
    """
    tokens = _tokens(shape, vocab)
    key = repr((FORMAT, gguf.GGML_QUANT_VERSION, arch, quant, seed, astuple(shape), tokens))
    digest = hashlib.sha256((key + (name or "")).encode()).hexdigest()[:12]
    path = cache_dir / f"{arch}-{shape.n_layers}x{shape.hidden}-{quant}-{digest}.gguf"
    if path.exists():
        return path
    cache_dir.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if quant in _FILE_TYPES:
            write_synthetic(
                partial, arch=arch, quant=quant, seed=seed, shape=shape, vocab=tokens, name=name
            )
        else:
            source = cached_synthetic(
                cache_dir, arch=arch, seed=seed, shape=shape, vocab=tokens, name=name
            )
            quantize_with_llama(source, partial, quant)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def quantize_with_llama(source: Path, target: Path, file_type: str) -> Path:
    """Requantize a float GGUF file by llama.cpp, with the mix of types its users get.

    Skips the calling test when llama-cpp-python is absent.
    """
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama.cpp makes the K-quants")
    from llama_cpp._logger import set_verbose

    set_verbose(False)
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = int(LLAMA_FILE_TYPES[file_type])
    parameters.nthread = os.cpu_count() or 1
    if llama_cpp.llama_model_quantize(bytes(source), bytes(target), parameters):
        raise RuntimeError(f"llama.cpp could not make {file_type} of {source}")
    return target


def tensor_shapes(
    arch: str, shape: Shape, *, fused_qkv: bool | None = None
) -> dict[str, tuple[int, ...]]:
    """Name every tensor in file order, rows first: (out, in) for a weight."""
    hidden, ffn = shape.hidden, shape.ffn
    nomic = arch == "nomic-bert"
    fused = nomic if fused_qkv is None else fused_qkv
    tensors: dict[str, tuple[int, ...]] = {"token_embd.weight": (shape.vocab, hidden)}
    if not nomic:
        tensors["position_embd.weight"] = (shape.context, hidden)
    tensors |= {"token_types.weight": (2, hidden)} | _norm("token_embd_norm", hidden)
    for layer in range(shape.n_layers):
        block = f"blk.{layer}."
        if fused:
            tensors |= _linear(f"{block}attn_qkv", 3 * hidden, hidden, bias=not nomic)
        else:
            for part in "qkv":
                tensors |= _linear(f"{block}attn_{part}", hidden, hidden, bias=not nomic)
        tensors |= _linear(f"{block}attn_output", hidden, hidden, bias=not nomic)
        tensors |= _norm(f"{block}attn_output_norm", hidden)
        tensors |= _linear(f"{block}ffn_up", ffn, hidden, bias=not nomic)
        if nomic:
            tensors |= _linear(f"{block}ffn_gate", ffn, hidden, bias=False)
        tensors |= _linear(f"{block}ffn_down", hidden, ffn, bias=not nomic)
        tensors |= _norm(f"{block}layer_output_norm", hidden)
    return tensors


def _stored_values(arch: str, name: str, dimensions: tuple[int, ...], seed: int) -> np.ndarray:
    """Values of one tensor; those of a model do not depend on how queries to values are stored."""
    block, part, kind = name.split(".")[-3:] if name.startswith("blk.") else ("", "", "")
    n_out = dimensions[0]
    if part == "attn_qkv" and arch == "bert":
        each = (n_out // 3, *dimensions[1:])
        return np.concatenate(
            [tensor_values(f"blk.{block}.attn_{p}.{kind}", each, seed) for p in "qkv"]
        )
    if part in ("attn_q", "attn_k", "attn_v") and arch == "nomic-bert":
        whole = tensor_values(f"blk.{block}.attn_qkv.{kind}", (3 * n_out, *dimensions[1:]), seed)
        return np.split(whole, 3)["qkv".index(part[-1])]
    return tensor_values(name, dimensions, seed)


def tensor_values(name: str, dimensions: tuple[int, ...], seed: int) -> np.ndarray:
    """Float32 values of one tensor, by the seed and its name alone."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    values = rng.standard_normal(dimensions, dtype=np.float32)
    part = name.split(".")[-2]
    if name.endswith("bias"):
        values *= 0.02
    elif part.endswith("_norm"):  # trained norms have a few channels that stand out
        values *= 0.1
        values += 1.0
        values[rng.integers(0, len(values), max(1, len(values) // 192))] *= 3.0
    else:
        values *= _DEVIATIONS.get(part) or _GAINS.get(part, 1.0) * dimensions[-1] ** -0.5
        flat = values.reshape(-1)
        flat[rng.integers(0, flat.size, max(1, flat.size // 2000))] *= 4.0
    return values


def synthetic_vocabulary(n_tokens: int) -> list[str]:
    """WordPiece tokens in the manner of BERT's uncased vocabulary, always the same.

    Special tokens where BERT has them, unused ones between, then characters of many
    scripts and their continuations, common words and endings, ideographs, and made-up
    syllables: a small vocabulary ends early and still reads most texts.
    """
    head = [SPECIAL_TOKENS.get(i, f"[unused{i - 1}]") for i in range(MASK + 1)]
    unique = dict.fromkeys(
        itertools.chain(head, _characters(), _words(), _ideographs(), _syllables())
    )
    if len(unique) < n_tokens:
        raise ValueError(f"only {len(unique)} of {n_tokens} tokens")
    return list(itertools.islice(unique, n_tokens))


def _norm(name: str, hidden: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (hidden,), f"{name}.bias": (hidden,)}


def _linear(name: str, n_out: int, n_in: int, *, bias: bool) -> dict[str, tuple[int, ...]]:
    weight: dict[str, tuple[int, ...]] = {f"{name}.weight": (n_out, n_in)}
    return weight | ({f"{name}.bias": (n_out,)} if bias else {})


def _stored_type(name: str, dimensions: tuple[int, ...], quant: str) -> gguf.GGMLQuantizationType:
    if len(dimensions) < 2 or name in _ALWAYS_FLOAT32:
        return gguf.GGMLQuantizationType.F32
    return gguf.GGMLQuantizationType[quant]


def _encode(values: np.ndarray, type_: gguf.GGMLQuantizationType) -> np.ndarray:
    if values.ndim < 2 or type_ is gguf.GGMLQuantizationType.F32:
        return values
    chunks = range(0, len(values), _CHUNK_ROWS)
    encoded = [quantize(values[start : start + _CHUNK_ROWS], type_) for start in chunks]
    return np.concatenate(encoded)


def _add_metadata(writer: gguf.GGUFWriter, arch: str, quant: str, shape: Shape, name: str) -> None:
    writer.add_name(name)
    writer.add_block_count(shape.n_layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_layer_norm_eps(shape.eps)
    writer.add_file_type(int(_FILE_TYPES[quant]))
    writer.add_causal_attention(False)
    writer.add_pooling_type(shape.pooling)
    if arch == "nomic-bert":
        writer.add_rope_freq_base(shape.rope_base)


def _add_tokenizer(writer: gguf.GGUFWriter, tokens: list[str]) -> None:
    types = [
        gguf.TokenType.CONTROL
        if i in SPECIAL_TOKENS
        else gguf.TokenType.UNUSED
        if token == _filler(i)
        else gguf.TokenType.NORMAL
        for i, token in enumerate(tokens)
    ]
    writer.add_token_type_count(2)
    writer.add_bos_token_id(CLS)
    writer.add_eos_token_id(SEP)
    writer.add_tokenizer_model("bert")
    writer.add_token_list([_phantom_space(token) for token in tokens])
    writer.add_token_scores([-1000.0] * len(tokens))
    writer.add_token_types(types)
    writer.add_unk_token_id(UNK)
    writer.add_sep_token_id(SEP)
    writer.add_pad_token_id(PAD)
    writer.add_uint32("tokenizer.ggml.cls_token_id", CLS)
    writer.add_mask_token_id(MASK)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _phantom_space(token: str) -> str:
    """Mark the start of a word, as llama.cpp does, instead of its continuation."""
    if token.startswith("[") and token.endswith("]"):
        return token
    return token[2:] if token.startswith("##") else "\u2581" + token


def _filler(token_id: int) -> str:
    return f"[PAD{token_id}]"


def _tokens(shape: Shape, vocab: Sequence[str] | Path | None) -> list[str]:
    """WordPiece tokens, exactly as many as the shape has rows for."""
    if vocab is None:
        tokens = synthetic_vocabulary(min(shape.vocab, 30_522))
    elif isinstance(vocab, Path):
        tokens = vocab.read_text(encoding="utf-8").splitlines()
    else:
        tokens = list(vocab)
    if len(tokens) > shape.vocab:
        raise ValueError(f"{len(tokens)} tokens do not fit {shape.vocab} rows")
    return tokens + [_filler(i) for i in range(len(tokens), shape.vocab)]


_RANGES = (  # first and last code point of scripts, the most frequent first
    (0x21, 0x7E),
    (0xA1, 0xFF),
    (0x100, 0x17F),
    (0x2010, 0x2026),
    (0x20AC, 0x20AC),
    (0x3B1, 0x3C9),
    (0x430, 0x45F),
    (0x5D0, 0x5EA),
    (0x621, 0x64A),
    (0x905, 0x939),
    (0xE01, 0xE2E),
    (0x1100, 0x1112),  # Hangul as its parts: decomposition leaves nothing else
    (0x1161, 0x1175),
    (0x11A8, 0x11C2),
    (0x3001, 0x3002),
    (0x3041, 0x3093),
    (0x30A1, 0x30F3),
    (0x2190, 0x2193),
    (0x2200, 0x220F),
)


def _characters() -> Iterator[str]:
    """Characters that survive BERT's lower-casing and stripping of accents."""
    for first, last in _RANGES:
        characters = [chr(point) for point in range(first, last + 1)]
        kept = [c for c in characters if unicodedata.normalize("NFD", c.lower()) == c]
        yield from (c for c in kept if unicodedata.category(c)[0] not in "CZ")
        yield from (f"##{c}" for c in kept if unicodedata.category(c)[0] in "LN")


def _ideographs() -> Iterator[str]:
    """BERT splits them one by one, so that none continues a word."""
    return map(chr, range(0x4E00, 0x6000))


_COMMON_WORDS = """
the of and in to was he is as for on with that it his by at from her she you had an were but be
this are not my they one which or have him me first all also their has up who out been when after
there into new two its time would no what about said we over then other so more can if like back
them only some could where just during before do made school through than now years most world may
between down well three year while will later city many how under since these day people good
search query document classification clustering text memory server model data system water music
history science language country government house family company state number group game
book film work life place part right left long high small large great early old young white black
heart blood cell cells patient patients treatment protein gene disease cancer effect effects study
flow boundary layer pressure wing speed heat theory method result results analysis problem solution
card bank account money payment transfer exchange rate cash pin phone order cat dog man woman child
"""
_ENDINGS = "s ed ing er est ly ion ions al ity ment ness able ful less ous ive ism ist ize y e"
_ONSETS = "b c d f g h j k l m n p r s t v w z ch sh th st tr pr br cr gr pl cl fl sp qu"
_NUCLEI = "a e i o u ai ea ou oo ie"
_CODAS = "n r s t l m d k p x ng st nt ck ll ss rd"


def _words() -> Iterator[str]:
    yield from _COMMON_WORDS.split()
    yield from (f"##{ending}" for ending in _ENDINGS.split())
    yield from (str(number) for number in itertools.chain(range(10, 100), range(1900, 2030)))
    yield from (f"##{number:02}" for number in range(100))


def _syllables() -> Iterator[str]:
    onsets, nuclei, codas = _ONSETS.split(), _NUCLEI.split(), ["", *_CODAS.split()]
    for coda, nucleus, onset in itertools.product(codas, nuclei, onsets):
        yield onset + nucleus + coda
        yield f"##{onset}{nucleus}{coda}"
    for four in itertools.product(onsets, nuclei, onsets, nuclei):
        yield "".join(four)
