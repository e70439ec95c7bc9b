"""What a header says of its model, and what it leaves open."""

from typing import Any

import pytest

from plimsoll.encoder.architecture import Pooling
from plimsoll.encoder.description import read_description
from plimsoll.errors import ModelUnsupportedError
from plimsoll.gguf.reader import GGUFHeader
from tests.encoder.test_architecture import SHAPE, header

VOCABULARY = {
    "tokenizer.ggml.model": "bert",
    "tokenizer.ggml.tokens": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁ship"],
}


def described(arch: str, **general: Any) -> GGUFHeader:
    """A header without a pooling type."""
    keys = {f"general.{key}": value for key, value in general.items()}
    return header(arch, metadata=VOCABULARY | {f"{arch}.pooling_type": None} | keys)


@pytest.mark.parametrize(
    ("name", "pooling"),
    [
        ("bge-small-en-v1.5", Pooling.CLS),
        ("Snowflake Arctic Embed S", Pooling.CLS),
        ("gte-base", Pooling.MEAN),
        ("e5-base-v2", Pooling.MEAN),
    ],
)
def test_a_file_without_a_pooling_takes_its_familys(name: str, pooling: Pooling):
    """The mean over a model that was trained on its first token is another model."""
    found = read_description(described("bert", name=name))

    assert found.architecture.pooling is pooling
    assert found.warnings == ()


def test_an_unknown_models_pooling_is_guessed_and_that_is_said():
    """Not refused: most take the mean; not silent: some do not."""
    found = read_description(described("bert", name="mine"))

    assert found.architecture.pooling is Pooling.MEAN
    (warning,) = found.warnings
    assert "bert.pooling_type" in warning
    assert "guess" in warning


def test_a_pooling_that_the_file_says_is_taken_from_any_family():
    """Its converter knew better than a catalogue."""
    found = read_description(
        header(
            "bert", metadata=VOCABULARY | {"general.name": "bge-small-en", "bert.pooling_type": 1}
        )
    )

    assert found.architecture.pooling is Pooling.MEAN
    assert found.warnings == ()


def test_a_vocabulary_with_more_words_than_rows_is_refused():
    """The last words would read past the table."""
    words = [*VOCABULARY["tokenizer.ggml.tokens"], *map(str, range(SHAPE.vocab))]
    found = header("bert", metadata=VOCABULARY | {"tokenizer.ggml.tokens": words})

    with pytest.raises(ModelUnsupportedError, match="505 words, the embedding table only 500"):
        read_description(found)


def test_another_tokenizer_is_refused_from_the_header():
    """XLM-RoBERTa's models are `bert` too, with pieces instead of words."""
    found = header("bert", metadata=VOCABULARY | {"tokenizer.ggml.model": "t5"})

    with pytest.raises(ModelUnsupportedError, match=r"tokenizer\.ggml\.model"):
        read_description(found)
