"""What was measured of one server, in a file that can be taken elsewhere."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import orjson

FORMAT = 1


class FiguresError(Exception):
    """A file that holds no figures of a server."""


@dataclass(frozen=True)
class Figures:
    """One server under three loads, each of which had it to itself.

    cores: that it may use. rest_bytes: in use after the loads, with nothing under way.
    short_tokens: of a request of one short text; lone_s: p50 of one after the other, short_per_s:
    requests a second of many clients. list_tokens: of a request of many texts; list_tokens_per_s:
    of as many clients as keep the engine busy.
    """

    version: str
    model: str
    compute: str
    dimensions: int
    cores: float
    n_threads: int
    rest_bytes: int
    short_tokens: float
    lone_s: float
    short_per_s: float
    list_texts: int
    list_tokens: float
    list_tokens_per_s: float

    @property
    def token_s(self) -> float:
        """What a further token of a request costs, by the two rates; cost = request + tokens."""
        list_s = self.list_tokens / self.list_tokens_per_s
        return max(1e-9, (list_s - 1 / self.short_per_s) / (self.list_tokens - self.short_tokens))

    @property
    def request_s(self) -> float:
        """What a request costs whatever it holds: routing, admission, JSON, a run's beginning."""
        return max(0.0, 1 / self.short_per_s - self.token_s * self.short_tokens)

    def cost_s(self, n_tokens: float) -> float:
        """Seconds of this server that a request of so many tokens takes, among many others."""
        return self.request_s + self.token_s * n_tokens

    def alone_s(self, n_tokens: float) -> float:
        """From sending such a request to its answer, where it is the only one."""
        return max(self.token_s, self.lone_s + self.token_s * (n_tokens - self.short_tokens))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"format": FORMAT, **asdict(self)}


def read_figures(path: Path) -> Figures:
    """The figures of a file. Raises FiguresError and OSError."""
    try:
        found = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict) or found.pop("format", None) != FORMAT:
        raise FiguresError(
            f"{path} has no figures of a server: write some with `plimsoll capacity measure`"
        )
    return _checked(path, found)


def _checked(path: Path, found: Mapping[str, Any]) -> Figures:
    expected = {one.name: one.type for one in fields(Figures)}
    if found.keys() != expected.keys():
        raise FiguresError(f"{path}: its keys have to be {', '.join(sorted(expected))}")
    for name, kind in expected.items():
        value = found[name]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        is_right = isinstance(value, str) if kind is str else is_number and 0 < value < math.inf
        if not is_right:
            wanted = "text" if kind is str else "a number above 0"
            raise FiguresError(f"{path}: {name} is {value!r}, not {wanted}")
    figures = Figures(**found)
    if figures.list_tokens <= figures.short_tokens:
        raise FiguresError(f"{path}: a list has no more tokens than a short text")
    return figures
