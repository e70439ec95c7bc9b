"""What every peer is asked for: the same texts, of known lengths, whole for each of them.

Lengths count tokens with [CLS] and [SEP] by the model's own vocabulary, and none is above what
the model takes, so that no peer cuts a text and another refuses it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from plimsoll.bench.comparison.models import ModelCase
from plimsoll.bench.comparison.texts import mixed_lengths
from plimsoll.encoder.tokenizer import WordPieceTokenizer
from plimsoll.encoder.vocabulary import Vocabulary, read_vocabulary
from plimsoll.sidecar.sidecar import Sidecar

SEED = 11
SHORT_TOKENS = 16
QUERY_TOKENS = (8, 24)
LONGEST_TOKENS = 2048
N_CLIENTS = 16
LIST_TEXTS = 32
MIXED_LISTS = 16
MIXED_TEXTS = MIXED_LISTS * LIST_TEXTS
N_REQUESTS = 256
ZIPF_TEXTS, ZIPF_REQUESTS, ZIPF_EXPONENT = 200, 2000, 1.0
N_COMPARED, COMPARED_LISTS = 64, 2
LEAST_LETTERS = 3  # of a word that texts are made of

TOKENS_PER_S, P50, P99 = "tokens/s", "p50", "p99"


@dataclass(frozen=True)
class Workload:
    """Requests, taken in turn by some clients, each of which waits for its answer."""

    name: str
    requests: Sequence[Sequence[str]]
    n_tokens: Sequence[int]  # of each request
    n_clients: int
    figures: Sequence[str]  # which of TOKENS_PER_S, P50 and P99 say something here
    once: bool = False  # all requests once, rather than again and again for some seconds


class Texts:
    """Makes texts of so many tokens, and counts those of others; owns the draw."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Draw from the whole words of a vocabulary."""
        self._tokenizer = WordPieceTokenizer(vocabulary)
        self._random = Random(SEED)
        words = [word for word in vocabulary.words if word.isascii() and word.isalpha()]
        self._words = [word for word in words if len(word) >= LEAST_LETTERS and word.islower()]

    @classmethod
    def of(cls, case: ModelCase) -> "Texts":
        """Texts for one model."""
        sidecar = Sidecar(case.sidecar_folder)
        vocabulary = read_vocabulary(sidecar.header.metadata)
        sidecar.close()
        return cls(vocabulary)

    def made(self, n_tokens: int) -> str:
        """A text of exactly so many tokens, at least three."""
        return " ".join(self._random.choices(self._words, k=n_tokens - 2))

    def made_between(self, shortest: int, longest: int, n_texts: int) -> list[str]:
        """Texts of lengths drawn evenly."""
        return [self.made(self._random.randint(shortest, longest)) for _ in range(n_texts)]

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each."""
        return [text.n_tokens for text in self._tokenizer.tokenize(texts, LONGEST_TOKENS)]

    def within(self, text: str, limit: int) -> str:
        """The text's first words, as many as `limit` tokens hold."""
        while (n_tokens := self.count([text])[0]) > limit:
            words = text.split()
            text = " ".join(words[: min(len(words) - 1, len(words) * limit // n_tokens)])
        return text

    def zipf(self, texts: Sequence[str], n_draws: int) -> list[str]:
        """Draws in which the text of rank r comes 1 / r ** ZIPF_EXPONENT as often as the first."""
        weights = [rank**-ZIPF_EXPONENT for rank in range(1, len(texts) + 1)]
        return self._random.choices(texts, weights, k=n_draws)

    def mixed(self, given: Sequence[str], limit: int) -> list[str]:
        """Texts of MIXED_LISTS lists one after another, each list with the whole distribution.

        given: at least MIXED_TEXTS that they are drawn from; empty: made up in usual lengths.
        """
        if given:
            drawn = self._random.sample(given, MIXED_TEXTS)
            texts = [self.within(text, limit) for text in drawn]
        else:
            texts = [self.made(max(3, n)) for n in mixed_lengths(MIXED_TEXTS, limit, None)]
        ranked = sorted(texts, key=len)
        dealt = [ranked[start::MIXED_LISTS] for start in range(MIXED_LISTS)]
        for one in dealt:
            self._random.shuffle(one)
        return [text for one in dealt for text in one]


def workloads_of(
    case: ModelCase, given: Sequence[str], n_listed: int
) -> tuple[list[Workload], list[Sequence[str]]]:
    """Every workload for one model, and the requests whose vectors are compared.

    given: texts to draw the mixed lists from. n_listed: texts of the one long list.
    """
    texts = Texts.of(case)
    limit = min(LONGEST_TOKENS, case.token_limit)
    shorts = [texts.made(SHORT_TOKENS) for _ in range(N_REQUESTS)]
    queries = texts.made_between(*QUERY_TOKENS, N_REQUESTS)
    mixed = texts.mixed(given, limit)
    lists = [mixed[start : start + LIST_TEXTS] for start in range(0, len(mixed), LIST_TEXTS)]
    listed = texts.made_between(*QUERY_TOKENS, n_listed)
    lengths = [max(SHORT_TOKENS, limit * step // 8) for step in (8, 1, 4, 2, 6, 0)]
    spread = [texts.made(length) for length in lengths]
    trace = texts.zipf(texts.made_between(*QUERY_TOKENS, ZIPF_TEXTS), ZIPF_REQUESTS)
    every = (TOKENS_PER_S, P50, P99)

    def workload(
        name: str,
        requests: Sequence[Sequence[str]],
        figures: Sequence[str],
        *,
        n_clients: int = 1,
        once: bool = False,
    ) -> Workload:
        n_tokens = [sum(texts.count(request)) for request in requests]
        return Workload(name, requests, n_tokens, n_clients, figures, once)

    found = [
        workload(f"one text of {SHORT_TOKENS} tokens", _alone(shorts), (P50, P99)),
        workload(f"{N_CLIENTS} clients", _alone(queries), every, n_clients=N_CLIENTS),
        workload(MIXED, lists, (TOKENS_PER_S,)),
        workload(f"a list of {n_listed:,}", [listed], (TOKENS_PER_S,), once=True),
        workload(f"lengths up to {limit:,}", _alone(spread), (TOKENS_PER_S,), once=True),
        workload("Zipf trace", _alone(trace), every, n_clients=N_CLIENTS),
    ]
    # Long texts alone: padded beside short ones they would take tens of gigabytes.
    return found, [shorts[:N_COMPARED], *lists[:COMPARED_LISTS], *_alone(spread)]


MIXED = f"mixed lists of {LIST_TEXTS}"


def _alone(texts: Sequence[str]) -> list[list[str]]:
    return [[text] for text in texts]
