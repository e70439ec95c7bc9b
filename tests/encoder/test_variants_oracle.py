"""Files that say the same model otherwise, or another one: Plimsoll and llama.cpp on each.

Small synthetic weights. llama.cpp reads the whole file by itself, keys included.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from plimsoll.encoder.tokenizer import WordPieceTokenizer
from plimsoll.encoder.vocabulary import read_vocabulary
from plimsoll.gguf.reader import read_header
from plimsoll.gguf.sources import FileSource
from tests.oracles import llama_reference, llama_tokenizer
from tests.small_models import opened, small_settings
from tests.synthetic import (
    CLS,
    MASK,
    SEP,
    SMALL_SHAPE,
    TINY_SHAPE,
    quantize_with_llama,
    write_synthetic,
)

pytestmark = pytest.mark.oracles

LENGTHS = [2, 3, 17, 130, 400]


@dataclass(frozen=True)
class Variant:
    """What is unusual in a file."""

    arch: str
    metadata: dict[str, Any] = field(default_factory=dict)
    fused_qkv: bool | None = None
    without: tuple[str, ...] = ()


VARIANTS = {
    "nomic": Variant("nomic-bert"),
    "bert": Variant("bert"),
    "no rotary base": Variant("nomic-bert", {"nomic-bert.rope.freq_base": None}),
    "linear scaling": Variant(
        "nomic-bert",
        {"nomic-bert.rope.scaling.type": "linear", "nomic-bert.rope.scaling.factor": 4.0},
    ),
    "factor alone": Variant("nomic-bert", {"nomic-bert.rope.scaling.factor": 3.0}),
    "old key": Variant("nomic-bert", {"nomic-bert.rope.scale_linear": 2.0}),
    "scaling turned off": Variant(
        "nomic-bert",
        {"nomic-bert.rope.scaling.type": "none", "nomic-bert.rope.scaling.factor": 4.0},
    ),
    "other epsilon": Variant("bert", {"bert.attention.layer_norm_epsilon": 1e-2}),
    "separate": Variant("nomic-bert", fused_qkv=False),
    "fused": Variant("bert", fused_qkv=True),
    "no types": Variant("bert", without=("token_types.weight",)),
    "no types, rotary": Variant("nomic-bert", without=("token_types.weight",)),
    "first token": Variant("bert", {"bert.pooling_type": int(gguf.PoolingType.CLS)}),
    "last token": Variant("bert", {"bert.pooling_type": int(gguf.PoolingType.LAST)}),
}


def random_ids(vocab: int) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [np.array([CLS, *rng.integers(MASK + 1, vocab, n - 2), SEP]) for n in LENGTHS]


def worst_cosine(file: Path, folder: Path) -> float:
    """Of Plimsoll's vectors with llama.cpp's, both as they read the file."""
    texts = random_ids(TINY_SHAPE.vocab)
    reference = llama_reference(file)
    theirs = np.stack([reference(text.tolist()) for text in texts])
    with opened(small_settings(folder, file)) as model:
        ours = model.finish(model.encode(texts), model.traits.dimensions)
    return float((ours.astype(np.float64) * theirs).sum(axis=1).min())


@pytest.mark.parametrize("name", VARIANTS)
def test_vectors_are_llama_cpps(tmp_path: Path, name: str):
    """Its GELU is a table of 16-bit floats, hence the distance of BERT's."""
    variant = VARIANTS[name]
    file = write_synthetic(
        tmp_path / "variant.gguf",
        arch=variant.arch,
        shape=SMALL_SHAPE,
        metadata=variant.metadata,
        fused_qkv=variant.fused_qkv,
        without=variant.without,
    )

    least = 0.99999 if variant.arch == "bert" else 0.9999999
    assert worst_cosine(file, tmp_path) > least


@pytest.mark.parametrize("quant", ["IQ4_NL", "IQ4_XS"])
def test_types_with_a_table_of_levels_give_llama_cpps_vectors(tmp_path: Path, quant: str):
    """llama.cpp rounds activations to 8 bits with them; the weights are the same."""
    whole = write_synthetic(tmp_path / "whole.gguf", shape=SMALL_SHAPE)
    file = quantize_with_llama(whole, tmp_path / f"{quant}.gguf", quant)

    assert worst_cosine(file, tmp_path) > 0.999


TEXTS = [
    "Schön ist schon; SCHÖN naïve façade",
    "Berlin berlin BERLIN, the Memory server!",
    "東京 and Москва [SEP] 1990",
]


@pytest.mark.parametrize("lowercase", [None, False, True])
@pytest.mark.parametrize("strip_accents", [None, False, True])
def test_ids_are_llama_cpps_under_each_normaliser(
    tmp_path: Path, lowercase: bool | None, strip_accents: bool | None
):
    """Absent keys included: the vocabulary is an uncased one, which both then take it for."""
    file = write_synthetic(
        tmp_path / "normalizer.gguf",
        arch="bert",
        shape=TINY_SHAPE,
        metadata={
            "tokenizer.ggml.normalizer.lowercase": lowercase,
            "tokenizer.ggml.normalizer.strip_accents": strip_accents,
        },
    )

    assert ids_of(file) == [llama_tokenizer(file)(text) for text in TEXTS]


def test_special_tokens_by_id_are_llama_cpps(tmp_path: Path):
    """Any three tokens may be the ends and the unknown one."""
    file = write_synthetic(
        tmp_path / "special.gguf",
        arch="bert",
        shape=TINY_SHAPE,
        metadata={
            "tokenizer.ggml.bos_token_id": 7,
            "tokenizer.ggml.cls_token_id": 7,
            "tokenizer.ggml.seperator_token_id": 8,
            "tokenizer.ggml.unknown_token_id": 9,
        },
    )

    found = ids_of(file)

    assert found[0][0] == 7
    assert found[0][-1] == 8
    assert found[:2] == [llama_tokenizer(file)(text) for text in TEXTS[:2]]


def ids_of(file: Path) -> list[list[int]]:
    with FileSource(file) as source:
        tokenizer = WordPieceTokenizer(read_vocabulary(read_header(source).metadata))
    return [text.ids.tolist() for text in tokenizer.tokenize(TEXTS, 512)]
