"""Which texts are measured: their lengths and token ids, the same in every process.

Speed depends on lengths, not on words, so a text is a row of scattered ids between [CLS]
and [SEP]; its length counts both. Lengths of the mixed list come from the project's load file
where it is given, else from a seeded draw of the same distribution.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

CLS, SEP = 101, 102
SCATTER = 2_654_435_761  # Knuth's multiplier: neighbours land far apart
SEED = 7
DRAWN_TEXTS = 2048
# The load file's two kinds of text: glosses of a dictionary, and chunks of a handbook.
GLOSS_SHARE = 0.58
GLOSS_TOKENS = (10, 40)
CHUNK_QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
CHUNK_TOKENS = (12, 115, 181, 274, 512)


def mixed_lengths(n_texts: int, limit: int, load_file: Path | None) -> list[int]:
    """Tokens of each text of a mixed list, none above `limit`; the same list every time.

    Of the load file's texts, ranked by length, every so manieth is taken, and they stand in
    the order of the file: a short list has its distribution too, by no luck of a draw.
    """
    lengths = _load_lengths(load_file)
    ranked = np.argsort(lengths, kind="stable")
    places = (np.arange(n_texts) + 0.5) * len(lengths) / n_texts
    chosen = np.sort(ranked[places.astype(int)])
    return [min(int(length), limit) for length in lengths[chosen]]


def _load_lengths(load_file: Path | None) -> np.ndarray:
    """Tokens of every text of the load file, or of DRAWN_TEXTS where there is none."""
    if load_file is not None:
        lines = load_file.read_text(encoding="utf-8").splitlines()
        return np.array([json.loads(line)["tokens_bert"] for line in lines])
    rng = np.random.default_rng(SEED)
    chunks = np.interp(rng.random(DRAWN_TEXTS), CHUNK_QUANTILES, CHUNK_TOKENS)
    glosses = rng.integers(*GLOSS_TOKENS, DRAWN_TEXTS, endpoint=True)
    is_gloss = rng.random(DRAWN_TEXTS) < GLOSS_SHARE
    lengths: np.ndarray = np.where(is_gloss, glosses, chunks).astype(int)
    return lengths


def token_ids(lengths: Sequence[int], vocabulary: int) -> list[np.ndarray]:
    """int64 ids of each text; vocabulary: rows of the embedding table.

    Without numpy.random, whose import would count as the measured process's time and memory.
    """
    lowest = min(1000, vocabulary // 2)  # below stand special and unused tokens
    texts, start = [], 0
    for length in lengths:
        ids = lowest + np.arange(start, start + length) * SCATTER % (vocabulary - lowest)
        ids[0], ids[-1] = CLS, SEP
        texts.append(ids)
        start += length
    return texts


def in_runs(texts: Sequence[np.ndarray], n_texts: int, n_tokens: int) -> list[Sequence[np.ndarray]]:
    """Cut a list, in its order, into runs of at most so many texts and tokens."""
    runs: list[Sequence[np.ndarray]] = []
    start = filled = 0
    for index, ids in enumerate(texts):
        if index > start and (index - start == n_texts or filled + len(ids) > n_tokens):
            runs.append(texts[start:index])
            start, filled = index, 0
        filled += len(ids)
    return [*runs, texts[start:]]
