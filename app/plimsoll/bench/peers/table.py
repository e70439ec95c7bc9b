"""The table of a run for people, and all of it for programs."""

from collections.abc import Mapping, Sequence
from typing import Any

from plimsoll.bench.comparison.report import NOT_MEASURED, Figure, aligned
from plimsoll.bench.peers.catalog import IN_INT8, PLIMSOLL
from plimsoll.bench.peers.results import ModelResults, Row

HEADS = ("figure", "Plimsoll", "peer's", "peer", "better by", "worst cosine", "called")
TARGET_HEADS = ("target", "Plimsoll", "baseline's", "baseline", "better by", "floor", "")
PROBLEM_HEADS = ("peer", NOT_MEASURED)
WINS = "the peer is better"


def table(
    machine: Mapping[str, str], results: Sequence[ModelResults], *, brief: bool = False
) -> str:
    """Markdown, a block a model: rows, targets, and the peers that were not measured, with why.

    brief: of each figure only the best peer, and every peer that is better than Plimsoll.
    """
    lines = [", ".join(f"{key} {value}" for key, value in machine.items())]
    for one in results:
        for ours, heading in ((PLIMSOLL, one.model), (IN_INT8, f"{one.model}, in int8")):
            if rows := one.rows(ours):
                shown = _closest(rows) if brief else rows
                lines += ["", heading, "", *aligned([HEADS, *map(_cells, shown)])]
        lines += ["", *aligned([TARGET_HEADS, *map(_target_cells, one.targets())])]
        if problems := one.problems():
            lines += ["", *aligned([PROBLEM_HEADS, *problems.items()])]
    return "\n".join(lines) + "\n"


def _closest(rows: Sequence[Row]) -> list[Row]:
    """Of rows in their order, those that a peer wins, and the first of every other figure."""
    won = [row for row in rows if row.peer_wins]
    first = {row.figure.name: row for row in reversed(rows)}
    return won + [row for row in first.values() if not row.peer_wins][::-1]


def _cells(row: Row) -> tuple[str, ...]:
    cosine = row.measured.worst_cosine
    return (
        row.figure.name,
        *row.figure.cells,
        NOT_MEASURED if cosine is None else f"{cosine:.6f}",
        row.measured.kind.how + (f"; {WINS}" if row.peer_wins else ""),
    )


def _target_cells(figure: Figure) -> tuple[str, ...]:
    return (figure.name, *figure.cells, str(figure.floor), figure.verdict or "")


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
                "rows_in_int8": [_row_as_dict(row) for row in one.rows(IN_INT8)],
                "targets": [figure.as_dict() for figure in one.targets()],
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
    about = {"peer_wins": row.peer_wins, "worst_cosine": row.measured.worst_cosine}
    return row.figure.as_dict() | about
