"""Two runs beside each other: an earlier one from its JSON, and the one just ended."""

from collections.abc import Mapping
from typing import Any

# Figure → its place in a run's JSON, and how it is written.
FIGURES: Mapping[str, tuple[tuple[str, ...], str]] = {
    "answers/s": (("answers_per_s",), "{:,.1f}"),
    "tokens/s": (("tokens_per_s",), "{:,.1f}"),
    "dense": (("totals", "dense_ratio"), "{:.2%}"),
    "failed": (("totals", "failed_ratio"), "{:.2%}"),
    "p50": (("totals", "latency", "p50_s"), "{:.3g} s"),
    "p90": (("totals", "latency", "p90_s"), "{:.3g} s"),
    "p99": (("totals", "latency", "p99_s"), "{:.3g} s"),
    "max": (("totals", "latency", "max_s"), "{:.3g} s"),
}
HEADS = ("", "before", "now", "change")
SAME_PLAN = ("mix", "n_clients", "rate", "huge_tokens", "seed")


def comparison(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The cells under HEADS, a row a figure, and a last one where the plans differ."""
    rows = []
    for name, (place, form) in FIGURES.items():
        earlier, later = _at(before, place), _at(now, place)
        shown = (form.format(value) if value is not None else "–" for value in (earlier, later))
        change = f"{later / earlier - 1:+.1%}" if earlier and later is not None else "–"
        rows.append((name, *shown, change))
    other = [key for key in SAME_PLAN if before["plan"].get(key) != now["plan"].get(key)]
    if other:
        rows.append(("load differs", "", "", ", ".join(other)))
    return rows


def _at(run: Mapping[str, Any], place: tuple[str, ...]) -> float | None:
    found: Any = run
    for key in place:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, int | float) else None
