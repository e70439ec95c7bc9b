"""The table of a run for people, and all of it for programs."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from plimsoll.bench.comparison.report import NOT_MEASURED, Figure, aligned, number
from plimsoll.bench.peers.catalog import IN_INT8, ONE_CORE, PLIMSOLL
from plimsoll.bench.peers.measure import FigureName
from plimsoll.bench.peers.results import ModelResults, Row
from plimsoll.bench.peers.workloads import MIXED, TOKENS_PER_S

HEADS = ("figure", "Plimsoll", "peer's", "peer", "better by", "worst cosine", "called")
RATIO_HEADS = (f"{MIXED}, beside", "Plimsoll better by", "variation", "in int8", "variation")
TARGET_HEADS = ("target", "Plimsoll", "baseline's", "baseline", "better by", "floor", "")
PROBLEM_HEADS = ("peer", NOT_MEASURED)
WINS = "the peer is better"


def table(
    machine: Mapping[str, str], results: Sequence[ModelResults], *, brief: bool = False
) -> str:
    """Markdown, a block a model: rows, targets, and the peers that were not measured, with why.

    brief: in place of the rows a line for each figure with a column for each peer.
    """
    lines = [", ".join(f"{key} {value}" for key, value in machine.items())]
    for one in results:
        if brief:
            lines += ["", one.model, "", *aligned(_overview(one)), "", *aligned(_ratios(one))]
        else:
            for ours, heading in ((PLIMSOLL, one.model), (IN_INT8, f"{one.model}, in int8")):
                if rows := one.rows(ours):
                    lines += ["", heading, "", *aligned([HEADS, *map(_cells, rows)])]
        lines += ["", *aligned([TARGET_HEADS, *map(_target_cells, one.targets())])]
        if problems := one.problems():
            lines += ["", *aligned([PROBLEM_HEADS, *problems.items()])]
    return "\n".join(lines) + "\n"


def _overview(results: ModelResults) -> list[tuple[str, ...]]:
    """Medians of each peer's best variant, the best of a line in bold.

    Lines in which a peer is better than Plimsoll come first, the clearest at the top.
    """
    names = dict.fromkeys(one.kind.name for one in results.measured if one.rounds)
    peers = [name for name in names if name != ONE_CORE]
    worst = dict[str, float]()  # ratio of Plimsoll to its best peer
    for row in results.rows():
        ratio = row.figure.ratio
        if ratio is not None:
            worst[row.figure.name] = min(ratio, worst.get(row.figure.name, ratio))
    order = sorted(results.names, key=lambda name: min(1.0, worst.get(name.name, 1.0)))
    lines = [_medians(results, name, peers) for name in order]
    cosine_line = ("worst cosine", *(_worst_cosine(results, peer) for peer in peers))
    return [("figure", *peers), *lines, cosine_line]


def _worst_cosine(results: ModelResults, peer: str) -> str:
    found = [one.worst_cosine for one in results.measured if one.kind.name == peer]
    return min((f"{cosine:.6f}" for cosine in found if cosine is not None), default="")


def _medians(results: ModelResults, name: FigureName, peers: Sequence[str]) -> tuple[str, ...]:
    best = [results.best(name, peer) for peer in peers]
    values = [list(one.values(name.name).values()) if one else [] for one in best]
    medians = [median(found) if found else None for found in values]
    known = [value for value in medians if value is not None]
    winner = None if not known else min(known) if name.lower_is_better else max(known)
    shown = ["" if value is None else number(value) for value in medians]
    cells = [
        f"**{text}**" if value is not None and value == winner else text
        for value, text in zip(medians, shown, strict=True)
    ]
    unit = "" if name.name.endswith(name.unit) else f", {name.unit}"
    return (name.name + unit, *cells)


def _ratios(results: ModelResults) -> list[tuple[str, ...]]:
    """How many times better Plimsoll is on mixed lists than each peer's best variant."""
    rows = {
        ours: {
            row.figure.peer: row.figure
            for row in results.rows(ours)
            if row.figure.name == f"{MIXED}, {TOKENS_PER_S}"
        }
        for ours in (PLIMSOLL, IN_INT8)
    }
    peers = dict.fromkeys([*rows[PLIMSOLL], *rows[IN_INT8]])
    return [
        RATIO_HEADS,
        *(
            (peer, *_ratio(rows[PLIMSOLL].get(peer)), *_ratio(rows[IN_INT8].get(peer)))
            for peer in peers
        ),
    ]


def _ratio(figure: Figure | None) -> tuple[str, str]:
    if figure is None or figure.ratio is None:
        return "", ""
    variation = figure.variation
    return figure.cells[3], "" if variation is None else f"{variation:.1%}"


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
