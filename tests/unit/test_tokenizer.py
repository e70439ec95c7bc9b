"""WordPiece from a GGUF vocabulary, on vocabularies small enough to check by eye."""

import numpy as np
import pytest

from app.encoder.tokenizer import WordPieceTokenizer, original_vocabulary
from app.errors import ModelUnsupportedError

NORMAL, CONTROL = 1, 3
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CLS, SEP, UNK = 2, 3, 1


def metadata(*phantom: str, special: list[str] = SPECIAL) -> dict[str, object]:
    """A GGUF file's keys; words as GGUF holds them, with "▁" where a word starts."""
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": [*special, *phantom],
        "tokenizer.ggml.token_type": [CONTROL] * len(special) + [NORMAL] * len(phantom),
    }


def ids(tokenizer: WordPieceTokenizer, text: str, limit: int = 64) -> list[int]:
    (tokenized,) = tokenizer.tokenize([text], limit)
    assert tokenized.ids.dtype == np.int64
    return tokenized.ids.tolist()


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


def test_words_and_their_continuations_are_told_apart():
    """ "ships" is ship + ##s, and "s" alone is another token."""
    tokenizer = WordPieceTokenizer(metadata("▁ship", "s", "▁s"))

    assert ids(tokenizer, "ships ship s") == [CLS, 5, 6, 5, 7, SEP]


def test_a_word_that_cannot_be_put_together_is_one_unknown_token():
    """Not one a letter: that is how the reference counts."""
    tokenizer = WordPieceTokenizer(metadata("▁ship", "s"))

    assert ids(tokenizer, "shipx ship") == [CLS, UNK, 5, SEP]


def test_a_word_of_more_than_a_hundred_letters_is_unknown():
    """The reference gives up there; a hundred are still read."""
    tokenizer = WordPieceTokenizer(metadata("▁a", "a"))

    assert ids(tokenizer, "a" * 100, limit=200) == [CLS, 5, *[6] * 99, SEP]
    assert ids(tokenizer, "a" * 101) == [CLS, UNK, SEP]


# --- case, accents, scripts -----------------------------------------------------------------


def test_a_vocabulary_without_capitals_lowers_case_and_strips_accents():
    """Uncased BERT was trained so; GGUF does not record it."""
    tokenizer = WordPieceTokenizer(metadata("▁ship", "▁elbe"))

    assert ids(tokenizer, "SHIP Élbe") == [CLS, 5, 6, SEP]


def test_a_vocabulary_with_capitals_keeps_case_and_accents():
    """Lowering them would read every name as another word."""
    tokenizer = WordPieceTokenizer(metadata("▁ship", "▁Ship", "▁café"))

    assert ids(tokenizer, "ship Ship SHIP café cafe") == [CLS, 5, 6, UNK, 7, UNK, SEP]


def test_capitals_of_special_tokens_and_other_scripts_tell_nothing():
    """[CLS] is in every vocabulary, and uncased BERT has letters without a lower case."""
    tokenizer = WordPieceTokenizer(metadata("▁ship", "▁İ", "▁[unused1]", "[unused2]"))

    assert ids(tokenizer, "SHIP") == [CLS, 5, SEP]


def test_ideographs_are_words_of_their_own():
    """Chinese and Japanese are written without blanks."""
    tokenizer = WordPieceTokenizer(metadata("▁東", "▁京"))

    assert ids(tokenizer, "東京") == [CLS, 5, 6, SEP]


def test_control_characters_and_blanks_are_no_tokens():
    """A text of nothing but them is empty."""
    tokenizer = WordPieceTokenizer(metadata("▁ship"))

    for empty in ("", "  ", "\t\n", "\u0000\u0007", "\u200b"):
        assert ids(tokenizer, empty) == [CLS, SEP]
    assert ids(tokenizer, " sh\u0000ip\u200b ") == [CLS, 5, SEP]


# --- special tokens in a text ---------------------------------------------------------------


def test_special_tokens_in_a_text_are_read_as_such():
    """As the model's original tokenizer does: vectors must not differ from the published ones."""
    tokenizer = WordPieceTokenizer(metadata("▁ship", "▁[", "▁]", "▁sep"))

    assert ids(tokenizer, "ship [SEP] ship") == [CLS, 5, SEP, 5, SEP]
    assert ids(tokenizer, "[MASK]") == [CLS, 4, SEP]
    assert ids(tokenizer, "[sep]") == [CLS, 6, 8, 7, SEP]  # in small letters it is a word


# --- the limit ------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_words", "kept"), [(1, 3), (5, 7), (6, 8), (7, 8), (100, 8)])
def test_a_text_is_cut_to_the_limit_and_ends_with_the_separator(n_words: int, kept: int):
    """The model never saw a text without its end in training."""
    tokenizer = WordPieceTokenizer(metadata("▁ship", "▁sea"))

    (text,) = tokenizer.tokenize(["sea " + "ship " * (n_words - 1)], limit=8)

    assert text.n_tokens == n_words + 2
    assert text.truncated is (n_words > 6)
    assert len(text.ids) == kept
    assert text.ids[:2].tolist() == [CLS, 6]
    assert text.ids[-1] == SEP


def test_a_batch_gives_each_text_its_own_ids():
    """Nothing is padded, and no text sees its neighbours' length."""
    tokenizer = WordPieceTokenizer(metadata("▁ship", "▁sea"))

    batch = tokenizer.tokenize(["ship", "", "sea ship sea", "ship " * 50], limit=6)

    assert [text.ids.tolist() for text in batch] == [
        [CLS, 5, SEP],
        [CLS, SEP],
        [CLS, 6, 5, 6, SEP],
        [CLS, 5, 5, 5, 5, SEP],
    ]
    assert [text.n_tokens for text in batch] == [3, 2, 5, 52]
    assert tokenizer.tokenize([], limit=6) == []


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
    ],
)
def test_a_vocabulary_that_cannot_be_used_is_told(changes: dict, told: str):
    """Another tokenizer's ids are noise to the model."""
    with pytest.raises(ModelUnsupportedError, match=told):
        WordPieceTokenizer(metadata("▁ship") | changes)


@pytest.mark.parametrize("missing", ["[UNK]", "[CLS]", "[SEP]"])
def test_a_vocabulary_without_a_token_that_every_text_needs_is_told(missing: str):
    """By its name, since it may only be spelt otherwise."""
    special = [token for token in SPECIAL if token != missing]

    with pytest.raises(ModelUnsupportedError, match=rf"no \{missing[:-1]}\]"):
        WordPieceTokenizer(metadata("▁ship", special=special))


def test_a_vocabulary_has_a_name_that_changes_with_any_word():
    """It is part of the fingerprint."""
    names = [
        WordPieceTokenizer(metadata(*words)).vocabulary_sha256
        for words in (("▁ship", "s"), ("▁ship", "▁s"), ("s", "▁ship"), ("▁ship", "s"))
    ]

    assert names[0] == names[3]
    assert len(set(names)) == 3
