"""WordPiece from a GGUF vocabulary, on vocabularies small enough to check by eye."""

import json
import subprocess
import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.implementations import BertWordPieceTokenizer
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from plimsoll.encoder.known_models import BGE_EN_V1_5, E5, NOMIC_V1_5
from plimsoll.encoder.tokenizer import (
    PIECE_CHARACTERS,
    STEP_CHARACTERS,
    WordPieceTokenizer,
    find_boundaries,
)
from plimsoll.encoder.vocabulary import Normalizer, read_vocabulary
from plimsoll.errors import InvalidRequestError
from tests.evaluation_data import json_lines, text_of

ROOT = Path(__file__).parents[2]
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


def tokenizer_over(
    *phantom: str, piece_characters: int = PIECE_CHARACTERS, **keys: object
) -> WordPieceTokenizer:
    """A tokenizer over words as GGUF holds them; `keys` are those of tokenizer.ggml."""
    return tokenizer_of(
        metadata(*phantom) | {f"tokenizer.ggml.{key}": value for key, value in keys.items()},
        piece_characters,
    )


def tokenizer_of(
    keys: dict[str, object], piece_characters: int = PIECE_CHARACTERS
) -> WordPieceTokenizer:
    return WordPieceTokenizer(read_vocabulary(keys), piece_characters=piece_characters)


def ids(tokenizer: WordPieceTokenizer, text: str, limit: int = 64) -> list[int]:
    (tokenized,) = tokenizer.tokenize([text], limit)
    assert tokenized.ids.dtype == np.int64
    return tokenized.ids.tolist()


# --- words ----------------------------------------------------------------------------------


def test_words_and_their_continuations_are_told_apart():
    """ "ships" is ship + ##s, and "s" alone is another token."""
    tokenizer = tokenizer_over("▁ship", "s", "▁s")

    assert ids(tokenizer, "ships ship s") == [CLS, 5, 6, 5, 7, SEP]


def test_a_word_that_cannot_be_put_together_is_one_unknown_token():
    """Not one a letter: that is how the reference counts."""
    tokenizer = tokenizer_over("▁ship", "s")

    assert ids(tokenizer, "shipx ship") == [CLS, UNK, 5, SEP]


def test_a_word_of_more_than_a_hundred_letters_is_unknown():
    """The reference gives up there; a hundred are still read."""
    tokenizer = tokenizer_over("▁a", "a")

    assert ids(tokenizer, "a" * 100, limit=200) == [CLS, 5, *[6] * 99, SEP]
    assert ids(tokenizer, "a" * 101) == [CLS, UNK, SEP]


# --- case, accents, scripts -----------------------------------------------------------------


def test_a_vocabulary_without_capitals_lowers_case_and_strips_accents():
    """Uncased BERT was trained so; GGUF does not record it."""
    tokenizer = tokenizer_over("▁ship", "▁elbe")

    assert ids(tokenizer, "SHIP Élbe") == [CLS, 5, 6, SEP]


def test_a_vocabulary_with_capitals_keeps_case_and_accents():
    """Lowering them would read every name as another word."""
    tokenizer = tokenizer_over("▁ship", "▁Ship", "▁café")

    assert ids(tokenizer, "ship Ship SHIP café cafe") == [CLS, 5, 6, UNK, 7, UNK, SEP]


def test_capitals_of_special_tokens_and_other_scripts_tell_nothing():
    """[CLS] is in every vocabulary, and uncased BERT has letters without a lower case."""
    tokenizer = tokenizer_over("▁ship", "▁İ", "▁[unused1]", "[unused2]")

    assert ids(tokenizer, "SHIP") == [CLS, 5, SEP]


def test_a_file_that_says_that_accents_stay_keeps_them_apart():
    """In German "schön" is beautiful and "schon" is already."""
    words = ("▁schon", "▁schön")

    kept = tokenizer_over(*words, **{"normalizer.strip_accents": False})
    stripped = tokenizer_over(*words, **{"normalizer.strip_accents": True})

    assert ids(kept, "Schon schön") == [CLS, 5, 6, SEP]
    assert ids(stripped, "Schon schön") == [CLS, 5, 5, SEP]


def test_a_file_that_says_its_case_is_not_asked_by_its_words():
    """A few names in capitals are in many an uncased vocabulary, and a cased one may have none."""
    cased_words, uncased_words = ("▁berlin", "▁Berlin", "▁Rome"), ("▁hello", "▁HELLO")

    lower = tokenizer_over(*cased_words, **{"normalizer.lowercase": True})
    as_it_is = tokenizer_over(*uncased_words, **{"normalizer.lowercase": False})

    assert ids(lower, "Berlin") == ids(lower, "berlin") == [CLS, 5, SEP]
    assert ids(as_it_is, "hello") != ids(as_it_is, "HELLO")
    assert ids(tokenizer_over("▁hello", **{"normalizer.lowercase": False}), "HELLO") == [
        CLS,
        UNK,
        SEP,
    ]


def test_ideographs_are_words_of_their_own():
    """Chinese and Japanese are written without blanks."""
    tokenizer = tokenizer_over("▁東", "▁京")

    assert ids(tokenizer, "東京") == [CLS, 5, 6, SEP]


def test_control_characters_and_blanks_are_no_tokens():
    """A text of nothing but them is empty."""
    tokenizer = tokenizer_over("▁ship")

    for empty in ("", "  ", "\t\n", "\u0000\u0007", "\u200b"):
        assert ids(tokenizer, empty) == [CLS, SEP]
    assert ids(tokenizer, " sh\u0000ip\u200b ") == [CLS, 5, SEP]


# --- special tokens in a text ---------------------------------------------------------------


def test_special_tokens_in_a_text_are_read_as_such():
    """As the model's original tokenizer does: vectors must not differ from the published ones."""
    tokenizer = tokenizer_over("▁ship", "▁[", "▁]", "▁sep")

    assert ids(tokenizer, "ship [SEP] ship") == [CLS, 5, SEP, 5, SEP]
    assert ids(tokenizer, "[MASK]") == [CLS, 4, SEP]
    assert ids(tokenizer, "[sep]") == [CLS, 6, 8, 7, SEP]  # in small letters it is a word


def test_special_tokens_are_those_that_the_file_names_by_id():
    """A vocabulary may spell them as it likes; the model knows their ids alone."""
    tokens = ["<s>", "</s>", "<unk>", "▁ship", "[SEP]", "[CLS]", "[UNK]", "[M]"]
    tokenizer = tokenizer_of(
        {
            "tokenizer.ggml.model": "bert",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [CONTROL] * 3 + [NORMAL] * 5,
            "tokenizer.ggml.bos_token_id": 0,
            "tokenizer.ggml.seperator_token_id": 1,
            "tokenizer.ggml.unknown_token_id": 2,
            "tokenizer.ggml.mask_token_id": 7,
        }
    )

    assert ids(tokenizer, "ship hull") == [0, 3, 2, 1]
    assert ids(tokenizer, "[M]ship") == [0, 7, 3, 1]
    assert ids(tokenizer, "ship " * 9, limit=4) == [0, 3, 3, 1]


# --- the limit ------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_words", "kept"), [(1, 3), (5, 7), (6, 8), (7, 8), (100, 8)])
def test_a_text_is_cut_to_the_limit_and_ends_with_the_separator(n_words: int, kept: int):
    """The model never saw a text without its end in training."""
    tokenizer = tokenizer_over("▁ship", "▁sea")

    (text,) = tokenizer.tokenize(["sea " + "ship " * (n_words - 1)], limit=8)

    assert text.n_tokens == n_words + 2
    assert text.truncated is (n_words > 6)
    assert len(text.ids) == kept
    assert text.ids[:2].tolist() == [CLS, 6]
    assert text.ids[-1] == SEP


@pytest.mark.parametrize("piece_characters", [20, PIECE_CHARACTERS])
@pytest.mark.parametrize("n_words", [0, 1, 4, 5, 6, 49])
def test_a_text_may_be_cut_at_its_start_and_keeps_what_stands_before_it(
    n_words: int, piece_characters: int
):
    """The end of a log says more than its head; a task's prefix belongs to what is left."""
    tokenizer = tokenizer_over("▁ship", "▁sea", "▁q", piece_characters=piece_characters)
    words = [5, 6] * n_words

    steps = tokenizer.steps(["ship sea " * n_words, "sea"], 12, "q ", "start")
    long, short = [text for step in steps for text in step]

    assert long.ids.tolist() == [CLS, 7, *words[-9:], SEP]
    assert long.n_tokens == len(words) + 3
    assert short.ids.tolist() == [CLS, 7, 6, SEP]


@pytest.mark.parametrize("cut", ["end", "start"])
@pytest.mark.parametrize("around", [[], [CLS, SEP]])
def test_ids_of_a_text_give_what_the_text_gives(cut: str, around: list[int]):
    """A client that has tokenized gets the vector of the text, with [CLS] and [SEP] or without."""
    tokenizer = tokenizer_over("▁ship", "▁sea", "▁q")
    for n_words in (0, 1, 3, 4, 30):
        (step,) = tokenizer.steps(["sea ship " * n_words], 8, "q ", cut)
        sent = [6, 5] * n_words
        if around:
            sent = [around[0], *sent, around[1]]

        taken = tokenizer.take_ids(sent, 8, "q ", cut)

        assert taken.ids.tolist() == step[0].ids.tolist()
        assert taken.n_tokens == step[0].n_tokens


@pytest.mark.parametrize("token", [-1, 7, 100264])
def test_an_id_that_the_vocabulary_does_not_have_is_refused(token: int):
    """OpenAI's ids go to 200,000: most of them are caught, and none reaches the table."""
    with pytest.raises(InvalidRequestError, match=f"the token id {token}, .* from 0 to 6;"):
        tokenizer_over("▁ship", "▁sea").take_ids([5, token], 8)


def test_a_batch_gives_each_text_its_own_ids():
    """Nothing is padded, and no text sees its neighbours' length."""
    tokenizer = tokenizer_over("▁ship", "▁sea")

    batch = tokenizer.tokenize(["ship", "", "sea ship sea", "ship " * 50], limit=6)

    assert [text.ids.tolist() for text in batch] == [
        [CLS, 5, SEP],
        [CLS, SEP],
        [CLS, 6, 5, 6, SEP],
        [CLS, 5, 5, 5, 5, SEP],
    ]
    assert [text.n_tokens for text in batch] == [3, 2, 5, 52]
    assert tokenizer.tokenize([], limit=6) == []


# --- long texts, piece by piece -------------------------------------------------------------

PIECE = 8  # so short that a few words are a long text; a special token still fits
NO_LIMIT = 1 << 30
FRAGMENTS = (
    *"aAzé 0.,!-_()[]'\t\n\r\x00\x0b\x1c\x7f\x85\xa0\xad\u200b\u2028\u3000\ufeff\ufffd",
    *"…。「」—≠≮`\u1fef\u037e\u166d\U000111c9¿§°+=|~^$",  # punctuation, some of it only here
    *"東京カ한\uf900\u2e80\U00020000\U0002b820\U0002b91f\U0002b920\U0002f800",
    *"\u0301\u0323\u0338\u034f\u093f\u1b44\u302e\ufe0f\u200d🚢👩👍🏽İẞΣﬁก็",
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[sep]", "[SE", "P]", "[[SEP]]", "[X]"),
    *("a" * 99, "a" * 100, "a" * 101, "ab" * 80, "\x00" * 20, "\u0301" * 20, "  " * 10, "[" * 12),
    *("a\x00b", "a" + "\x00" * 30 + "b", "e" + "\u0301" * 30 + "e", "ship" * 10, "東" * 12),
)
ANY_TEXT = st.lists(
    st.one_of(st.sampled_from(FRAGMENTS), st.text(st.characters(exclude_categories=["Cs"]))),
    max_size=30,
).map("".join)


every_normalizer = pytest.mark.parametrize(
    "how",
    [Normalizer(lower, strip) for lower in (True, False) for strip in (True, False)],
    ids=["uncased", "lower-case", "stripped", "cased"],
)


class WholeTexts:
    """The library's own BERT tokenizer, which is given a text as a whole."""

    def __init__(self, texts: Iterable[str], how: Normalizer) -> None:
        """Knows every character of `texts` and their pairs, so that another cut is another id."""
        normalizer = BertNormalizer(lowercase=how.lowercase, strip_accents=how.strip_accents)
        characters = sorted({c for text in texts for c in normalizer.normalize_str(text)} - {"▁"})
        words = [c for c in characters if not c.isspace()] + ["ab", "ship"]
        words += [] if how.lowercase else ["Ab"]
        self.metadata = metadata(*(f"▁{word}" for word in words), *words) | {
            "tokenizer.ggml.normalizer.lowercase": how.lowercase,
            "tokenizer.ggml.normalizer.strip_accents": how.strip_accents,
        }
        vocabulary = [*SPECIAL, *words, *(f"##{word}" for word in words)]
        self._tokenizer = BertWordPieceTokenizer(
            {word: index for index, word in enumerate(vocabulary)},
            lowercase=how.lowercase,
            strip_accents=how.strip_accents,
        )

    def ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids


@every_normalizer
def test_a_text_in_pieces_has_the_ids_of_the_whole(how: Normalizer):
    """Wherever it is cut: another id anywhere is another vector, and nothing would say so."""
    whole = WholeTexts(FRAGMENTS, how)

    @settings(max_examples=300)
    @given(text=ANY_TEXT, piece=st.integers(6, 40), prefix=st.sampled_from(["", "a: ", "ab"]))
    def check(text: str, piece: int, prefix: str) -> None:
        tokenizer = tokenizer_of(whole.metadata, piece)
        ((found,),) = tokenizer.steps([text], NO_LIMIT, prefix)
        assert found.ids.tolist() == whole.ids(prefix + text)
        assert found.n_tokens == len(found.ids)

    check()


@every_normalizer
def test_texts_chosen_to_break_a_tokenizer_have_the_ids_of_the_whole(
    data_dir: Path, how: Normalizer
):
    """Other scripts, joiners, controls, words without end."""
    # The longest only repeat themselves.
    texts = [text_of(entry)[:20_000] for entry in json_lines("nasty-texts.jsonl")]
    whole = WholeTexts(texts, how)
    tokenizer = tokenizer_of(whole.metadata, PIECE)

    found = tokenizer.tokenize(texts, NO_LIMIT)

    assert [text.ids.tolist() for text in found] == [whole.ids(text) for text in texts]


@every_normalizer
def test_texts_are_cut_at_every_character_that_parts_words_and_at_no_other(how: Normalizer):
    """One too many tears a word; one too few, repeated, would pass for a single word."""
    boundaries = find_boundaries(how)
    normalizer = BertNormalizer(lowercase=how.lowercase, strip_accents=how.strip_accents)
    pre_tokenizer = BertPreTokenizer()

    def n_words(characters: Iterable[str]) -> int:
        lines = "".join(f"x{character}x\n" for character in characters)
        return len(pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(lines)))

    different = []
    for start in (*range(0, 0x30000, 256), *range(0xE0000, 0xE1000, 256)):
        block = [chr(code) for code in range(start, start + 256) if not 0xD800 <= code < 0xE000]
        if n_words(block) == len(block):
            different += [character for character in block if boundaries.first.match(character)]
            continue
        for character in block:
            parts = n_words([character]) > 1
            if parts is not bool(boundaries.first.match(character)):
                different.append(character)
    assert [f"{ord(c):x} {unicodedata.category(c)}" for c in different] == []


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("a" * 100, [5, *[6] * 99]),
        ("a" * 101, [UNK]),
        ("a" * 10_000, [UNK]),
        ("a" * 50 + "\x00" * 10_000 + "a" * 50, [5, *[6] * 99]),
        ("a" * 50 + "\u0301" * 10_000 + "a" * 51, [UNK]),
        ("\x00" * 10_000, []),
        ("[" * 1000, [7] * 1000),
    ],
)
def test_a_word_that_no_piece_holds_is_read_as_one(word: str, expected: list[int]):
    """By what is left of it after normalisation, and its neighbours keep their own ids."""
    tokenizer = tokenizer_over("▁a", "a", "▁[", piece_characters=PIECE)

    assert ids(tokenizer, word, NO_LIMIT) == [CLS, *expected, SEP]
    assert ids(tokenizer, f"a {word} a", NO_LIMIT) == [CLS, 5, *expected, 5, SEP]


@pytest.mark.parametrize("limit", [2, 3, 4, 17, 51, 52, 53])
def test_a_text_in_pieces_is_cut_to_the_limit_and_counted_to_its_end(limit: int):
    """A client is told how long its text was."""
    tokenizer = tokenizer_over("▁ship", "▁sea", piece_characters=PIECE)

    (text,) = tokenizer.tokenize(["sea " + "ship " * 49], limit)

    assert text.n_tokens == 52
    assert text.ids.tolist() == [*[CLS, 6, *[5] * 49][: limit - 1], SEP]


def test_a_step_reads_no_more_than_it_may_and_texts_come_in_order():
    """Between steps other requests have their turn, so a long text must not be one step."""
    n_words = 3 * STEP_CHARACTERS // 5
    texts = ["ship", "ship " * n_words, "", *["sea"] * STEP_CHARACTERS]
    tokenizer = tokenizer_over("▁ship", "▁sea")

    steps = list(tokenizer.steps(texts, limit=4))

    assert [len(step) for step in steps[:3]] == [1, 0, 0]
    assert max(map(len, steps)) <= STEP_CHARACTERS // len("sea") + 1
    found = [text for step in steps for text in step]
    assert [text.n_tokens for text in found] == [3, n_words + 2, 2, *[3] * STEP_CHARACTERS]
    assert len(steps) == len(list(tokenizer.steps(iter(texts), limit=4)))


def test_texts_of_nothing_are_counted_as_work():
    """Each still costs its object in the library."""
    steps = tokenizer_over("▁ship").steps([""] * (STEP_CHARACTERS + 2), limit=4)

    assert [len(step) for step in steps] == [STEP_CHARACTERS + 1, 1]


def test_every_known_prefix_can_be_a_piece_of_its_own():
    """Otherwise a long text is copied with the prefix in front of it."""
    for known in (NOMIC_V1_5, E5, BGE_EN_V1_5):
        assert all(prefix.endswith(" ") for prefix in known.task_prefixes.values())


MEMORY_PROBE = """
import json, sys
from plimsoll.encoder.tokenizer import WordPieceTokenizer
from plimsoll.encoder.vocabulary import read_vocabulary
from plimsoll.machine.allocator import tune

def memory():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines["VmHWM"].split()[0])

tune()
tokenizer = WordPieceTokenizer(read_vocabulary(json.loads(sys.argv[1])))
text = "a." * 1_000_000
tokenizer.tokenize(["a." * 50_000], 256)
open("/proc/self/clear_refs", "w").write("5")
before = memory()
(found,) = tokenizer.tokenize([text], 256)
print(json.dumps([found.n_tokens, (memory() - before) << 10]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self")
def test_a_long_text_takes_little_memory_beside_itself():
    """Each character is a token here: as a whole it would take the library 900 MB."""
    arguments = [sys.executable, "-c", MEMORY_PROBE, json.dumps(metadata("▁a", "▁."))]

    done = subprocess.run(arguments, cwd=ROOT, check=True, capture_output=True, text=True)
    n_tokens, taken_bytes = json.loads(done.stdout)

    assert n_tokens == 2_000_002
    assert taken_bytes < 20_000_000
