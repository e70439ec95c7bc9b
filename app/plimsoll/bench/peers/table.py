"""The table of a run for people, and all of it for programs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from plimsoll.bench.comparison.report import aligned, spread
from plimsoll.bench.peers.results import ModelResults, Row

HEADS = ("figure", "Plimsoll", "peer", "", "better by", "worst cosine", "called")
TARGET_HEADS = ("target", "Plimsoll", "baseline", "", "better by", "floor", "")
WINS = "the peer is better"


def table(
    machine: Mapping[str, str], results: Sequence[ModelResults], *, brief: bool = False
) -> str:
    """A block a model: rows, targets, and the peers that were not measured, with the reason.

    brief: of each figure only the best peer, and every peer that is better than Plimsoll.
    """
    lines = [", ".join(f"{key} {value}" for key, value in machine.items())]
    for one in results:
        rows = _closest(one.rows()) if brief else one.rows()
        targets = [_target_cells(row) for row in one.targets()]
        lines += ["", one.model, *aligned([HEADS, *map(_cells, rows)])]
        if targets:
            lines += ["", *aligned([TARGET_HEADS, *targets])]
        problems = one.problems().items()
        if problems:
            lines += ["", *aligned([(peer, f"not measured: {why}") for peer, why in problems])]
    return "\n".join(lines) + "\n"


def _closest(rows: Sequence[Row]) -> list[Row]:
    """Of rows in their order, those that a peer wins, and the first of every other figure."""
    won = [row for row in rows if row.peer_wins]
    first = {row.figure.name: row for row in reversed(rows)}
    return won + [row for row in first.values() if not row.peer_wins][::-1]


def _cells(row: Row) -> tuple[str, ...]:
    cosine = row.measured.worst_cosine
    return (
        *_beginning(row),
        f"{cosine:.6f}" if cosine is not None else "–",
        row.measured.kind.how + (f"; {WINS}" if row.peer_wins else ""),
    )


def _target_cells(row: Row) -> tuple[str, ...]:
    return (*_beginning(row), str(row.figure.floor), row.figure.verdict or "")


def _beginning(row: Row) -> tuple[str, ...]:
    figure = row.figure
    return (
        figure.name,
        f"{spread(figure.values)} {figure.unit}",
        f"{spread(figure.peer_values)} {figure.unit}",
        figure.peer,
        f"{spread(figure.ratios)} ×" if figure.ratios else "–",
    )


def as_dict(
    machine: Mapping[str, str], options: Mapping[str, Any], results: Sequence[ModelResults]
) -> dict[str, Any]:
    """Every round of every peer, and the rows made of them."""
    return {
        "machine": dict(machine),
        "options": dict(options),
        "models": [
            {
                "model": one.model,
                "rows": [_row_as_dict(row) for row in one.rows()],
                "targets": [_row_as_dict(row) for row in one.targets()],
                "peers": [
                    {
                        "peer": measured.kind.title,
                        "called": measured.kind.how,
                        "worst_cosine": measured.worst_cosine,
                        "problem": measured.problem,
                        "rounds": list(measured.rounds.values()),
                    }
                    for measured in one.measured
                ],
            }
            for one in results
        ],
    }


def _row_as_dict(row: Row) -> dict[str, Any]:
    return asdict(row.figure) | {
        "ratio": row.ratio,
        "peer_wins": row.peer_wins,
        "worst_cosine": row.measured.worst_cosine,
        "verdict": row.figure.verdict,
    }
