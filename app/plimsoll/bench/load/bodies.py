"""The kinds of requests, each a pure builder of bodies for POST /embed."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

import orjson

from plimsoll.bench.load.texts import WORDS, TextSource, words

LONG_WORDS = 2000
LIST_TEXTS = 50
LIST_OF = re.compile("list([1-9][0-9]{0,4})")
LISTED_WORDS = 12
LISTED_TEXTS = 8000  # that a run prepares, in lists of some number
BIG_BODY_BYTES = 20_000_000  # just under 20 MiB, a server's usual limit
BIG_LIST_WORDS = 1000
SPECIAL_TOKENS = 2  # [CLS] and [SEP]

SHORT = "short"
HANG_UP = "hangup"

# Each must be answered with a 4xx; `malformed` adds bodies that end too early.
MALFORMED = (
    b"",
    b"null",
    b'"a text"',
    b'["a text"]',
    b"not JSON",
    b'{"input":"a text",}',
    b'{"input":"\xff\xfe"}',
    b'{"input":"\\ud800"}',
    b'{"input":NaN}',
    b'{"input":null}',
    b'{"input":5}',
    b'{"input":["a text",5]}',
    b'{"input":[["a text"]]}',
    b'{"input":"a text","dimensions":"64"}',
    b'{"input":"a text","truncate":"perhaps"}',
    b'{"input":"a text","no_such_field":1}',
    b"{}",
    b"[" * 100_000,
)


@dataclass(frozen=True)
class Body:
    """A request's bytes and what is due for them."""

    content: bytes
    n_texts: int  # vectors that are due; 0: the body is malformed, and a 4xx is due
    sample: int | None = None  # number of the verified text that this is


@dataclass(frozen=True)
class Ingredients:
    """What bodies are made of."""

    source: TextSource
    huge_tokens: int


@dataclass(frozen=True)
class Kind:
    """A kind of request and how many different bodies of it a run prepares."""

    build: Callable[[Random, Ingredients], Body]
    n_bodies: int
    is_shared: bool = False  # too big to be built anew for a request


def body_of(texts: str | Sequence[str]) -> Body:
    """The body that asks for vectors of a text or a list."""
    n_texts = 1 if isinstance(texts, str) else len(texts)
    return Body(orjson.dumps({"input": texts}), n_texts)


def _short(random: Random, of: Ingredients) -> Body:
    return body_of(of.source.draw(random))


def _long(random: Random, of: Ingredients) -> Body:
    found: list[str] = []
    while len(found) < LONG_WORDS:
        found += of.source.draw(random).split()
    return body_of(" ".join(found[:LONG_WORDS]))


def _list(random: Random, of: Ingredients) -> Body:
    return body_of([of.source.draw(random) for _ in range(LIST_TEXTS)])


def _list_of(n_texts: int, random: Random, of: Ingredients) -> Body:
    drawn = (of.source.draw(random).split() for _ in range(n_texts))
    return body_of([" ".join(text[:LISTED_WORDS]) for text in drawn])


def _huge(random: Random, of: Ingredients) -> Body:
    return body_of(words(random, max(1, of.huge_tokens - SPECIAL_TOKENS)))


def _body20(random: Random, of: Ingredients) -> Body:
    block = words(random, 10_000) + " "
    return body_of(block * (BIG_BODY_BYTES // len(block)))


def _body20list(random: Random, of: Ingredients) -> Body:
    """Texts that overlap and yet all differ: drawing every word would take seconds."""
    supply = random.choices(WORDS, k=20_000)
    texts: list[str] = []
    n_bytes = 0
    while n_bytes < BIG_BODY_BYTES - 10_000:  # room for one more text
        start = len(texts) * 3 % (len(supply) - BIG_LIST_WORDS)
        texts.append(" ".join(supply[start : start + BIG_LIST_WORDS]))
        n_bytes += len(texts[-1]) + len('"",')
    return body_of(texts)


def _malformed(random: Random, of: Ingredients) -> Body:
    if random.random() < 0.2:
        whole = _list(random, of).content
        return Body(whole[: random.randrange(1, len(whole))], 0)
    return Body(random.choice(MALFORMED), 0)


KINDS: Mapping[str, Kind] = {
    SHORT: Kind(_short, 1024),
    "long": Kind(_long, 32),
    "list": Kind(_list, 64),
    "huge": Kind(_huge, 8),
    "body20": Kind(_body20, 1, is_shared=True),
    "body20list": Kind(_body20list, 1, is_shared=True),
    HANG_UP: Kind(_list, 16),
    "malformed": Kind(_malformed, 128),
}


def kind_of(name: str) -> Kind | None:
    """One of KINDS; `list` with a number has as many short texts, up to 99,999. None: no kind."""
    if found := LIST_OF.fullmatch(name):
        n_texts = int(found[1])
        return Kind(partial(_list_of, n_texts), max(1, min(LISTED_TEXTS // n_texts, 64)))
    return KINDS.get(name)


class BodyPool:
    """Draws the requests of a run; the same seed draws the same ones in the same order.

    Bodies are rendered before the load, so that sending costs no more than sending.
    """

    def __init__(
        self,
        mix: Mapping[str, float],
        ingredients: Ingredients,
        seed: int,
        *,
        samples: Sequence[str] = (),
        fresh: bool = False,
    ) -> None:
        """Render. The kinds of the mix are known.

        samples: texts that every short request is to be one of. fresh: build each body anew,
        except shared ones and samples, so that no cache of the server's can answer.
        """
        self._random = Random(seed)
        self._ingredients = ingredients
        self._names = list(mix)
        self._weights = list(mix.values())
        self._kinds = {name: kind for name in mix if (kind := kind_of(name))}
        self._bodies = {
            name: [self._build(name) for _ in range(kind.n_bodies)]
            for name, kind in self._kinds.items()
        }
        self._is_fresh = {name: fresh and not kind.is_shared for name, kind in self._kinds.items()}
        if samples:
            rendered = enumerate(map(body_of, samples))
            self._bodies[SHORT] = [Body(body.content, 1, number) for number, body in rendered]
            self._is_fresh[SHORT] = False

    def draw(self) -> tuple[str, Body]:
        """The next request: its kind and its body."""
        [name] = self._random.choices(self._names, self._weights)
        body = self._build(name) if self._is_fresh[name] else None
        return name, body or self._random.choice(self._bodies[name])

    def _build(self, name: str) -> Body:
        return self._kinds[name].build(self._random, self._ingredients)
