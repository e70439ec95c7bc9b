"""Words, normaliser and special tokens of a GGUF file, on vocabularies small enough to read."""

from typing import Any

import numpy as np
import pytest

from plimsoll.encoder.vocabulary import (
    Normalizer,
    guess_normalizer,
    original_vocabulary,
    read_vocabulary,
)
from plimsoll.errors import ModelUnsupportedError

NORMAL, CONTROL = 1, 3
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SMALL = [f"word{chr(97 + i)}{chr(97 + j)}" for i in range(20) for j in range(10)]


def metadata(*phantom: str, special: list[str] = SPECIAL) -> dict[str, Any]:
    """A GGUF file's keys; words as GGUF holds them, with "▁" where a word starts."""
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": [*special, *phantom],
        "tokenizer.ggml.token_type": [CONTROL] * len(special) + [NORMAL] * len(phantom),
    }


# --- the phantom space ----------------------------------------------------------------------


def test_the_phantom_space_becomes_the_original_spelling():
    """What stands for a word's start in GGUF is bare in WordPiece, and the other way round."""
    found = original_vocabulary(["[CLS]", "▁ship", "s", "▁#", "#", "▁##"], [3, 1, 1, 1, 1, 1])

    assert found == ["[CLS]", "ship", "##s", "#", "###", "##"]


def test_a_lone_mark_is_the_continuation_of_itself():
    """BERT's vocabulary has "##▁": read as an empty word it would shift every id after it."""
    assert original_vocabulary(["▁", "▁▁"], [1, 1]) == ["##▁", "▁"]


def test_special_tokens_stand_as_they_are_with_or_without_their_type():
    """Some converters mark only some of them; brackets are enough."""
    tokens = ["[CLS]", "[unused0]", "<s>", "▁[", "▁]", "[]"]

    assert original_vocabulary(tokens, [3, 1, 3, 1, 1, 1]) == [
        "[CLS]",
        "[unused0]",
        "<s>",
        "[",
        "]",
        "##[]",
    ]
    assert original_vocabulary(["[CLS]", "▁a"], None) == ["[CLS]", "a"]


def test_types_may_come_as_an_array():
    """That is how the header's reader gives numbers."""
    assert original_vocabulary(["[CLS]", "▁a"], np.array([3, 1], np.int32)) == ["[CLS]", "a"]


# --- the normaliser --------------------------------------------------------------------------


@pytest.mark.parametrize("odd", ["Berlin", "NASA", "##McD", "schön", "naïve", "İstanbul"])
def test_one_odd_word_does_not_decide_how_all_texts_are_read(odd: str):
    """One capital letter among 30,000 words made a model cased, and every vector another."""
    assert guess_normalizer([*SPECIAL, *SMALL, odd]) == Normalizer(True, True)


def test_words_with_capitals_say_that_case_is_kept():
    """A third of a cased vocabulary has them; an uncased one never meets them."""
    names = [word.title() for word in SMALL[:20]]

    assert guess_normalizer([*SMALL, *names]) == Normalizer(False, False)


def test_words_with_accents_say_that_accents_are_kept():
    """As in uncased models of German or Turkish, where accents tell words apart."""
    accented = [word.replace("o", "ö") for word in SMALL[:20]]

    assert guess_normalizer([*SMALL, *accented]) == Normalizer(True, False)


def test_other_scripts_and_special_tokens_tell_nothing():
    """Hangul is taken apart in any case, and [CLS] stands in every vocabulary."""
    others = ["한", "東", "й", "[CLS]", "[MASK]", "1990", "##."] * 20

    assert guess_normalizer([*SMALL, *others]) == Normalizer(True, True)
    assert guess_normalizer([]) == Normalizer(True, True)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, Normalizer(True, True)),
        ({"lowercase": True}, Normalizer(True, True)),
        ({"lowercase": False}, Normalizer(False, False)),
        ({"strip_accents": False}, Normalizer(True, False)),
        ({"lowercase": False, "strip_accents": True}, Normalizer(False, True)),
        ({"lowercase": True, "strip_accents": False}, Normalizer(True, False)),
    ],
)
def test_the_normaliser_is_the_files_own_as_far_as_it_says(
    keys: dict[str, bool], expected: Normalizer
):
    """Accents go with case where only case is named, as in BERT and in llama.cpp."""
    said = {f"tokenizer.ggml.normalizer.{key}": value for key, value in keys.items()}

    assert read_vocabulary(metadata("▁ship") | said).normalizer == expected


# --- the name of a vocabulary ----------------------------------------------------------------


def test_each_normaliser_has_a_name_of_its_own_and_a_guess_has_that_of_its_result():
    """It is part of the fingerprint; how a file came to say it is not."""

    def name(**said: bool) -> str:
        keys = {f"tokenizer.ggml.normalizer.{key}": value for key, value in said.items()}
        return read_vocabulary(metadata("▁ship") | keys).sha256

    names = {
        name(lowercase=lower, strip_accents=strip)
        for lower in (False, True)
        for strip in (False, True)
    }
    assert len(names) == 4
    assert name() == name(lowercase=True) == name(lowercase=True, strip_accents=True)
    assert name(lowercase=False) == name(lowercase=False, strip_accents=False)


def test_other_special_tokens_are_another_space_and_the_usual_ones_are_not():
    """Every vector begins with the first of them."""
    usual = read_vocabulary(metadata("▁ship"))
    said = metadata("▁ship") | {
        "tokenizer.ggml.cls_token_id": 2,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.seperator_token_id": 3,
    }
    moved = said | {"tokenizer.ggml.seperator_token_id": 0}

    assert read_vocabulary(said).sha256 == usual.sha256
    assert read_vocabulary(moved).sha256 != usual.sha256


# --- vocabularies that cannot be used -------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tokenizer.ggml.model": "gpt2"}, "gpt2"),
        ({"tokenizer.ggml.model": None}, "None"),
        ({"tokenizer.ggml.tokens": None}, "no vocabulary"),
        ({"tokenizer.ggml.model": np.arange(3)}, "not supported"),
        ({"tokenizer.ggml.tokens": []}, "no vocabulary"),
        ({"tokenizer.ggml.tokens": np.arange(6)}, "no vocabulary"),
        ({"tokenizer.ggml.token_type": [1]}, "6 tokens do not have a type each"),
        ({"tokenizer.ggml.token_type": 1}, "6 tokens do not have a type each"),
        ({"tokenizer.ggml.token_type": np.full(6, np.nan)}, "6 tokens do not have a type each"),
        ({"tokenizer.ggml.token_type": ["x"] * 6}, "6 tokens do not have a type each"),
        ({"tokenizer.ggml.normalizer.lowercase": 1}, "normalizer.lowercase is 1, not true or f"),
        ({"tokenizer.ggml.normalizer.strip_accents": "no"}, "normalizer.strip_accents is 'no'"),
        ({"tokenizer.ggml.cls_token_id": 6}, "cls_token_id is 6, not the id of one of 6 tokens"),
        ({"tokenizer.ggml.padding_token_id": -1}, "padding_token_id is -1"),
        ({"tokenizer.ggml.unknown_token_id": True}, "unknown_token_id is True"),
        ({"tokenizer.ggml.mask_token_id": np.arange(2)}, "mask_token_id is array"),
        (
            {"tokenizer.ggml.cls_token_id": 2, "tokenizer.ggml.bos_token_id": 0},
            "cls_token_id 2 and tokenizer.ggml.bos_token_id 0 name two tokens",
        ),
    ],
)
def test_a_vocabulary_that_cannot_be_used_is_told(changes: dict, told: str):
    """Another tokenizer's ids are noise to the model."""
    with pytest.raises(ModelUnsupportedError, match=told):
        read_vocabulary(metadata("▁ship") | changes)


@pytest.mark.parametrize("missing", ["[UNK]", "[CLS]", "[SEP]"])
def test_a_vocabulary_without_a_token_that_every_text_needs_is_told(missing: str):
    """By its name, since it may only be spelt otherwise."""
    special = [token for token in SPECIAL if token != missing]

    with pytest.raises(ModelUnsupportedError, match=rf"no \{missing[:-1]}\]"):
        read_vocabulary(metadata("▁ship", special=special))


def test_a_vocabulary_has_a_name_that_changes_with_any_word():
    """It is part of the fingerprint."""
    names = [
        read_vocabulary(metadata(*words)).sha256
        for words in (("▁ship", "s"), ("▁ship", "▁s"), ("s", "▁ship"), ("▁ship", "s"))
    ]

    assert names[0] == names[3]
    assert len(set(names)) == 3
