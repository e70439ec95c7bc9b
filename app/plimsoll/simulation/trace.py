"""What a simulation replays: requests, and what becomes of the machine, a JSON line each.

    {"at_s": 0.5, "tokens": [32, 128]}             a request for two texts of so many tokens
    {"at_s": 0.5, "tokens": [32], "retries": 2}    one whose client comes back so often when it is
                                                   refused, each time as late as it is told
    {"at_s": 3.0, "used_bytes_extra": 100000000}   from now on something else uses so much
    {"at_s": 4.0, "memory_failure": true}          the engine's allocation is refused, and with
                                                   "for_s": 2.5 every one for so long
    {"at_s": 5.0, "cores": 1.5, "others": 0.3}     from now on the quota allows so many cores, and
                                                   others take this share of them, 0 by default
    {"at_s": 6.0, "reread_s": 0.4}                 from now on the weights are read from disk again
                                                   in each run, which takes so long; 0: they stay

Pure: lines in, records out. Strict, so that a misspelt trace is not taken for a quiet one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import orjson

MOST_S = 86_400.0  # a day
MOST_TEXT_TOKENS = 1_000_000
MOST_EXTRA_BYTES = 1 << 50
MOST_CORES = 1024
MOST_RETRIES = 100


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request: tokens of each of its texts, and how often its client tries again."""

    at_s: float
    tokens: Sequence[int]
    n_retries: int = 0


@dataclass(frozen=True, slots=True)
class ExtraMemory:
    """From now on something else uses so much of the limit."""

    at_s: float
    n_bytes: int


@dataclass(frozen=True, slots=True)
class MemoryFailure:
    """The run under way finds no memory, and so do all that are tried within `for_s` from then."""

    at_s: float
    for_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Processors:
    """From now on the quota allows so many cores, of which others take a share."""

    at_s: float
    cores: float
    others_ratio: float = 0.0

    @property
    def left(self) -> float:
        """Cores that are left for the server; the kernel never leaves it none."""
        return max(0.01, self.cores * (1 - self.others_ratio))


@dataclass(frozen=True, slots=True)
class Rereading:
    """From now on each run reads the weights again, which takes so long."""

    at_s: float
    reread_s: float


TraceEvent: TypeAlias = Arrival | ExtraMemory | MemoryFailure | Processors | Rereading


def parse_trace(lines: Iterable[bytes]) -> list[TraceEvent]:
    """Read a trace, in the order of its lines; blank ones are skipped.

    Raises ValueError with the number of the first line that is none of these events.
    """
    events = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                events.append(_parse_event(line))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
    return events


def _parse_event(line: bytes) -> TraceEvent:
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error.msg}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"not an object but {_shown(fields)}")
    at_s = fields.pop("at_s", None)
    if not _is_number(at_s) or not 0 <= at_s <= MOST_S:
        raise ValueError(f"at_s is {_shown(at_s)}, not seconds from 0 to {MOST_S:.0f}")
    match sorted(fields.items()):
        case [("tokens", tokens)]:
            return Arrival(float(at_s), _token_counts(tokens))
        case [("retries", n_retries), ("tokens", tokens)]:
            if not _is_count(n_retries, 0, MOST_RETRIES):
                raise ValueError(
                    f"retries is {_shown(n_retries)}, not a number from 0 to {MOST_RETRIES}"
                )
            return Arrival(float(at_s), _token_counts(tokens), n_retries)
        case [("used_bytes_extra", n_bytes)]:
            if not _is_count(n_bytes, 0, MOST_EXTRA_BYTES):
                raise ValueError(f"used_bytes_extra is {_shown(n_bytes)}, not a number of bytes")
            return ExtraMemory(float(at_s), n_bytes)
        case [("memory_failure", True)]:
            return MemoryFailure(float(at_s))
        case [("for_s", for_s), ("memory_failure", True)]:
            return MemoryFailure(float(at_s), _number("for_s", for_s, MOST_S))
        case [("cores", cores)]:
            return Processors(float(at_s), _number("cores", cores, MOST_CORES))
        case [("cores", cores), ("others", others)]:
            return Processors(
                float(at_s), _number("cores", cores, MOST_CORES), _number("others", others, 1)
            )
        case [("reread_s", reread_s)]:
            return Rereading(float(at_s), _number("reread_s", reread_s, MOST_S))
    raise ValueError(
        "beside at_s there is one of tokens (a list, and retries), used_bytes_extra (a number), "
        "memory_failure (true), cores (a number) and reread_s (seconds); this has "
        f"{_shown(fields)}"
    )


def _number(name: str, value: Any, most: float) -> float:
    if not _is_number(value) or not 0 <= value <= most:
        raise ValueError(f"{name} is {_shown(value)}, not a number from 0 to {most:.0f}")
    return float(value)


def _token_counts(tokens: Any) -> tuple[int, ...]:
    if not isinstance(tokens, list) or not tokens:
        raise ValueError(f"tokens is {_shown(tokens)}, not a list with a number for each text")
    for n_tokens in tokens:
        if not _is_count(n_tokens, 1, MOST_TEXT_TOKENS):
            raise ValueError(
                f"tokens holds {_shown(n_tokens)}, not a number from 1 to {MOST_TEXT_TOKENS}"
            )
    return tuple(tokens)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _shown(value: Any) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= 40 else f"{text[:37]}..."
