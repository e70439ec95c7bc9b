"""Figures with their peers, floors and spread; a table for people, JSON for programs."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, median, stdev
from typing import Any, Literal

Verdict = Literal["pass", "MISS", "not measured"]
NOT_MEASURED: Verdict = "not measured"


@dataclass(frozen=True)
class Floor:
    """A line that a figure's median, or its ratio's, has to hold."""

    on: Literal["value", "ratio"]
    at_least: float | None = None
    at_most: float | None = None

    def __str__(self) -> str:
        sign, bound = ("≥", self.at_least) if self.at_least is not None else ("≤", self.at_most)
        shown = "" if bound is None else number(bound)
        return f"{sign} {shown}{' ×' if self.on == 'ratio' else ''}"

    def holds(self, value: float) -> bool:
        """Whether `value` keeps to both bounds."""
        above = self.at_least is None or value >= self.at_least
        return above and (self.at_most is None or value <= self.at_most)


@dataclass(frozen=True)
class Figure:
    """One measured thing; values of all rounds, the peer's from the same rounds."""

    model: str
    stage: str
    name: str
    unit: str
    values: Sequence[float]
    peer: str = ""
    peer_values: Sequence[float] = ()
    lower_is_better: bool = False
    floor: Floor | None = None

    @property
    def ratios(self) -> list[float]:
        """How many times better than the peer, round by round: above 1 is better."""
        pairs = zip(self.values, self.peer_values, strict=True) if self.peer_values else ()
        if self.lower_is_better:
            return [peer / ours for ours, peer in pairs if ours]
        return [ours / peer for ours, peer in pairs if peer]

    @property
    def verdict(self) -> Verdict | None:
        """Whether the floor is held; None without one."""
        if self.floor is None:
            return None
        measured = self.ratios if self.floor.on == "ratio" else self.values
        if not measured:
            return "not measured"
        return "pass" if self.floor.holds(median(measured)) else "MISS"

    @property
    def ratio(self) -> float | None:
        """How many times better than the peer, the median of the rounds; None: not measured."""
        return median(self.ratios) if self.ratios else None

    @property
    def variation(self) -> float | None:
        """Coefficient of variation of the ratios, of two rounds and more."""
        return stdev(self.ratios) / fmean(self.ratios) if len(self.ratios) > 1 else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {
            "median": median(self.values) if self.values else None,
            "ratios": self.ratios,
            "ratio": self.ratio,
            "variation": self.variation,
            "verdict": self.verdict,
        }

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """Figure, peer's figure, peer and ratio, for a table."""
        ratio = f"{spread(self.ratios)} ×" if self.ratios else NOT_MEASURED
        return (
            self._cell(self.values),
            self._cell(self.peer_values) if self.peer else "",
            self.peer,
            ratio if self.peer else "",
        )

    def _cell(self, values: Sequence[float]) -> str:
        return f"{spread(values)} {self.unit}".rstrip() if values else NOT_MEASURED


@dataclass
class Report:
    """What a run has found so far."""

    machine: dict[str, Any]
    options: dict[str, Any]
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    @property
    def n_missed(self) -> int:
        """Floors that were not held: what was not measured holds none."""
        return sum(figure.verdict in ("MISS", "not measured") for figure in self.figures)

    def as_dict(self) -> dict[str, Any]:
        """The whole report for JSON."""
        return {
            "machine": self.machine,
            "options": self.options,
            "figures": [figure.as_dict() for figure in self.figures],
            "notes": self.notes,
            "broken": self.broken,
        }

    def as_table(self) -> str:
        """One block a model; median and, in brackets, lowest and highest of the rounds."""
        lines = [", ".join(f"{key} {value}" for key, value in self.machine.items())]
        heads = ("figure", "Plimsoll", "peer's", "peer", "better by", "floor", "")
        for model in dict.fromkeys(figure.model for figure in self.figures):
            figures = [figure for figure in self.figures if figure.model == model]
            lines += ["", model, "", *aligned([heads, *map(_cells, figures)])]
        lines += ["", *(f"note: {note}" for note in self.notes)]
        lines += [f"BROKEN OFF: {what}" for what in self.broken]
        return "\n".join(lines) + "\n"


def _cells(figure: Figure) -> tuple[str, ...]:
    name = f"{figure.stage}: {figure.name}"
    return (name, *figure.cells, str(figure.floor or ""), figure.verdict or "")


def spread(values: Sequence[float]) -> str:
    """`median (lowest-highest)`."""
    middle = number(median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({number(min(values))}-{number(max(values))})"


def number(value: float) -> str:
    """Three digits that matter; whole numbers above 100."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, with the cells of a column below each other; heads come first."""
    heads, *rest = rows
    widths = [max(map(len, column)) for column in zip(heads, *rest, strict=True)]
    rule = tuple("-" * width for width in widths)
    return [
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |"
        for row in (heads, rule, *rest)
    ]
