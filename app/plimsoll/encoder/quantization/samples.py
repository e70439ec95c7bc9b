"""Texts to calibrate with, and others to judge by: of many kinds, lengths and scripts.

Both are ours, in texts.json. Beside whole texts there are their first words, since the shortest
texts come out worst, and runs of ids drawn from the vocabulary, for what no text here says.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files as package_files

import numpy as np

MOST_TOKENS = 256
FIRST_WORDS = (1, 2, 4, 8)
DRAWN_LENGTHS = (1, 2, 4, 8, 16, 32, 64, 128)
N_DRAWN = 64
SEEDS = {"calibration": 1, "held_out": 2}

Tokenize = Callable[[Sequence[str]], Sequence[np.ndarray]]


@dataclass(frozen=True)
class Samples:
    """Token ids, int64, of texts; special tokens included."""

    calibration: list[np.ndarray]
    held_out: list[np.ndarray]


def draw_samples(tokenize: Tokenize, vocabulary: int, token_limit: int) -> Samples:
    """The texts as a model's tokenizer has them, cut to its limit.

    vocabulary: number of ids to draw from. token_limit: of a text, special tokens included.
    """
    written = json.loads(package_files(__package__).joinpath("texts.json").read_text("utf-8"))
    found = {}
    for kind, seed in SEEDS.items():
        whole = written[kind]
        parts = [" ".join(text.split()[:n]) for n in FIRST_WORDS for text in whole[n::8]]
        ids = [text[:MOST_TOKENS] for text in tokenize([*whole, *parts])]
        ids = [text for text in ids if len(text) > 2]
        found[kind] = ids + _drawn(ids[0], vocabulary, token_limit, seed)
    return Samples(**found)


def _drawn(example: np.ndarray, vocabulary: int, token_limit: int, seed: int) -> list[np.ndarray]:
    """Runs of ids, between the special tokens that an example begins and ends with."""
    random = np.random.default_rng(seed)
    lengths = np.minimum(np.resize(DRAWN_LENGTHS, N_DRAWN), token_limit - 2)
    return [
        np.concatenate([example[:1], random.integers(0, vocabulary, length), example[-1:]])
        for length in lengths
    ]
