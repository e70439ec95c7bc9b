"""A migration as one HTML page: its verdict, old beside new, how it went, and who did what."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from itertools import pairwise
from typing import Any

from plimsoll.charts.lines import line_chart
from plimsoll.charts.page import html_page, section, table
from plimsoll.charts.svg import LEFT, PLOT_WIDTH, RIGHT, WIDTH, svg
from plimsoll.cli.migration_tables import shadow_figures
from plimsoll.cli.migration_words import bridge_told, duration, space_name

Answer = Mapping[str, Any]

# Each word has a sign too, for those who do not see colours.
SIGNS = {
    "go": "✓", "passed": "✓", "no_go": "✕", "failed": "✕", "stopped": "✕", "inconclusive": "?",
    "undecided": "?", "under_way": "…", "noted": "·",
}  # fmt: skip
GOOD, BAD, OPEN = "good", "bad", "open"
LOOKS = {"✓": GOOD, "✕": BAD, "?": OPEN, "…": OPEN, "·": ""}
VERSIONS = ("old", "new", "bm25")
STYLE = """
:root { --old: #6a5acd; --new: #0072b2; --bm25: #b87700; --documents: #0072b2; --rate: #00795a;
  --good: #00704f; --bad: #b3261e; --open: #8a5a00; }
@media screen and (prefers-color-scheme: dark) { :root { --old: #b08cf0; --new: #4f9bff;
  --bm25: #f0b429; --documents: #4f9bff; --rate: #2fc99b; --good: #4cd3a5; --bad: #ff7a66;
  --open: #f0b429; } }
.verdict { border: 2px solid currentColor; border-radius: .4rem; padding: .6rem .9rem; }
.verdict strong { font-size: 1.3rem; } .verdict li { color: var(--ink); }
.good { color: var(--good); } .bad { color: var(--bad); } .open { color: var(--open); }
.words td { white-space: normal; text-align: left; vertical-align: top; }
.words th { text-align: left; } .words td:first-child { white-space: nowrap; }
dl { display: grid; grid-template-columns: max-content auto; gap: .15rem 1rem; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
ol.audit { list-style: none; padding: 0 0 0 1rem; border-left: 3px solid var(--grid); }
ol.audit li { margin: .5rem 0; overflow-wrap: anywhere; } time { color: var(--faint); }
"""
NAME_WIDTH, VALUE_WIDTH, BAR_HEIGHT, GAP = 150, 110, 14, 12


def migration_page(report: Answer) -> str:
    """The whole document, of what `GET /migrations/{number}/report` answers."""
    migration, progress = report["migration"], report["progress"]
    verdict = migration["verdict"]
    parts = [
        f"<h1>{escape(_title(migration))}</h1>",
        _verdict(migration, verdict),
        section("What was moved", (), _facts(migration)),
    ]
    if verdict:
        parts += [section("Checks", (), _checks(verdict)), *_beside(verdict)]
    parts += [
        *_progress(migration, progress),
        *_shadow(migration),
        section("Quarantine", (), _quarantine(migration)),
        section("Hooks", (), _hooks(migration)),
        section("Audit", (), _audit(migration["changes"])),
    ]
    return html_page(_title(migration), STYLE, "".join(parts))


def _title(migration: Answer) -> str:
    return (
        f"Migration {migration['id']}: {migration['collection']} from "
        f"{space_name(migration['source'])} to {space_name(migration['target'])}"
    )


def _verdict(migration: Answer, verdict: Answer | None) -> str:
    """The decision, what kept it from a go, and what would get worse all the same."""
    told = [f"Stopped: {migration['failure']}"] if migration["failure"] else []
    decision, look = "none yet", OPEN
    if verdict:
        decision, look = verdict["decision"], LOOKS[SIGNS[verdict["decision"]]]
        told += [*verdict["reasons"], *(f"Warning: {warning}" for warning in verdict["warnings"])]
    items = "".join(f"<li>{escape(reason)}</li>" for reason in told)
    words = f"{SIGNS.get(decision, '')} Verdict: {decision.replace('_', '-')}"
    return (
        f'<div class="verdict {look}"><strong>{escape(words.strip())}</strong>'
        f"{f'<ul>{items}</ul>' if items else ''}</div>"
    )


def _facts(migration: Answer) -> str:
    facts = {
        "State": migration["state"].replace("_", " "),
        "From": f"{space_name(migration['source'])}, {migration['source']['dimensions']} values, "
        f"{migration['source']['fingerprint']}",
        "To": f"{space_name(migration['target'])}, {migration['target']['dimensions']} values, "
        f"{migration['target']['fingerprint']}",
        "Documents": f"{migration['documents']:,}, {migration['vectors']:,} with a new vector",
        "Embedded": f"{migration['embedded']:,} by the migration, {migration['tokens']:,} tokens",
        "Left out": f"{migration['quarantined']:,} in quarantine, {migration['skipped']:,} changed "
        "or gone meanwhile",
        "Searches": "read both versions" if migration["progressive"] else "read one version",
        "Rollback": migration["rollback"],
        "Judged queries": f"{migration['judged_queries']:,}",
    }
    if migration["bridge"]:
        facts["Bridge"] = bridge_told(migration)
    items = (f"<dt>{name}</dt><dd>{escape(str(told))}</dd>" for name, told in facts.items())
    return f"<dl>{''.join(items)}</dl>"


def _checks(verdict: Answer) -> str:
    rows = [
        (check["name"], f"{SIGNS[check['outcome']]} {check['outcome']}", check["message"])
        for check in verdict["checks"]
    ]
    return table(("check", "outcome", "found"), rows, "Checks of the verdict", "words")


def _beside(verdict: Answer) -> Iterator[str]:
    """Every figure that the old version, the new one or BM25 has, side by side."""
    figures: dict[str, dict[str, float]] = {}
    for check in verdict["checks"]:
        for name, value in check["figures"].items():
            version, _, figure = name.partition("_")
            if version in VERSIONS and isinstance(value, int | float):
                figures.setdefault(figure, {})[version] = float(value)
    if not figures:
        return
    rows = [
        (
            figure.replace("_", " "),
            *(f"{values[version]:.4g}" if version in values else "–" for version in VERSIONS),
            f"{values['new'] - values['old']:+.4g}" if {"old", "new"} <= set(values) else "–",
        )
        for figure, values in figures.items()
    ]
    heads = ("figure", *VERSIONS, "change")
    drawing = _bars(figures)
    yield section(
        "The old version beside the new one", VERSIONS, drawing + table(heads, rows, "Figures")
    )


def _bars(figures: Mapping[str, Mapping[str, float]]) -> str:
    """A bar a version, each figure on a scale of its own, which begins at zero."""
    marks, y = list[str](), float(GAP)
    for figure, values in figures.items():
        longest = max(values.values()) or 1.0
        name = figure.replace("_", " ")
        marks.append(f'<text x="4" y="{y + BAR_HEIGHT - 2:g}">{escape(name)}</text>')
        for version in VERSIONS:
            if version in values:
                width = (WIDTH - NAME_WIDTH - VALUE_WIDTH) * values[version] / longest
                marks.append(
                    f'<rect x="{NAME_WIDTH}" y="{y:g}" width="{width:.1f}" height="{BAR_HEIGHT}" '
                    f'fill="var(--{version})"/><text x="{NAME_WIDTH + width + 6:.1f}" '
                    f'y="{y + BAR_HEIGHT - 2:g}">{version} {values[version]:.4g}</text>'
                )
                y += BAR_HEIGHT + 4
        y += GAP
    return svg(y, marks, "Figures of the old version, the new one and BM25, as in the table below")


def _progress(migration: Answer, progress: Sequence[Answer]) -> Iterator[str]:
    """How many documents had a new vector when, and how fast that went."""
    if len(progress) < 2:
        yield section("How it went", (), "<p>It was too short to be drawn.</p>")
        return
    began = progress[0]["second"]
    end_s = progress[-1]["second"] - began
    places = [LEFT + PLOT_WIDTH * (at["second"] - began) / end_s for at in progress]
    done = [float(at["n_embedded"]) for at in progress]
    rates: list[float | None] = [None]
    for before, after in pairwise(progress):
        elapsed_s = after["second"] - before["second"]
        rates.append((after["n_embedded"] - before["n_embedded"]) / elapsed_s)
    worked_s = _worked_s(migration["changes"], began, end_s)
    rate = (done[-1] - done[0]) / worked_s
    told = f"{duration(worked_s)} of embedding, {rate:.1f} documents a second in the mean"
    yield section(
        "Documents embedded",
        (),
        f"<p>{told}</p>"
        + line_chart({"documents": done}, places, end_s, "documents", "Documents embedded by then"),
    )
    yield section(
        "Documents a second",
        (),
        line_chart({"rate": rates}, places, end_s, "documents/s", "Documents embedded a second"),
    )


def _worked_s(changes: Sequence[Answer], began: float, span_s: float) -> float:
    """Seconds of the span in which the migration ran: neither paused, failed nor waiting for you.

    began: when the span begins, by the clock of the changes. Without such seconds all of the span.
    """
    moments = [_seconds(change["at"]) for change in changes] + [began + span_s]
    worked_s = sum(
        max(0.0, min(ended, began + span_s) - max(since, began))
        for change, (since, ended) in zip(changes, pairwise(moments), strict=True)
        if change["after"] == "running"
    )
    return worked_s or span_s


def _shadow(migration: Answer) -> Iterator[str]:
    """Live searches that both versions answered, where some were."""
    if migration["shadow"]:
        rows = shadow_figures(migration["shadow"])
        told = table(("figure", "value"), rows, "Live searches, compared", "words")
        yield section("Live searches, compared", (), told)


def _quarantine(migration: Answer) -> str:
    if not migration["quarantine"]:
        return "<p>No document was left out.</p>"
    rows = [
        (left["id"], str(left["attempts"]), "yes" if left["has_old_vector"] else "no",
         left["reason"])
        for left in migration["quarantine"]
    ]  # fmt: skip
    n_more = migration["quarantined"] - len(rows)
    more = f"<p>And {n_more:,} more.</p>" if n_more > 0 else ""
    heads = ("document", "tries", "old vector", "why")
    return table(heads, rows, "Documents in quarantine", "words") + more


def _hooks(migration: Answer) -> str:
    if not migration["hooks"]:
        return "<p>No hook was asked.</p>"
    rows = [
        (
            asked["hook"],
            asked["moment"],
            f"{SIGNS[asked['outcome']]} {asked['outcome'].replace('_', ' ')}",
            "" if asked["seconds"] is None else f"{asked['seconds']:.1f} s",
            asked["reason"],
        )
        for asked in migration["hooks"]
    ]
    return table(("hook", "when", "answer", "took", "said"), rows, "Answers of hooks", "words")


def _audit(changes: Sequence[Answer]) -> str:
    """A strip of the states over time, and every change in words."""
    items = "".join(
        f'<li><time datetime="{escape(change["at"])}">{escape(change["at"])}</time> '
        f"<strong>{escape(change['after'].replace('_', ' '))}</strong> by {escape(change['who'])}"
        f"{': ' + escape(change['why']) if change['why'] else ''}</li>"
        for change in changes
    )
    return f'{_strip(changes)}<ol class="audit">{items}</ol>'


def _strip(changes: Sequence[Answer]) -> str:
    moments = [_seconds(change["at"]) for change in changes]
    whole_s = moments[-1] - moments[0]
    if whole_s <= 0:
        return ""
    marks, width = list[str](), WIDTH - 2 * RIGHT
    for change, (began, ended) in zip(changes, pairwise(moments), strict=False):
        x, span = RIGHT + width * (began - moments[0]) / whole_s, width * (ended - began) / whole_s
        fill = "var(--grid)" if change["after"] in ("paused", "failed") else "var(--new)"
        told = f"{change['after']} for {duration(ended - began)}"
        marks.append(
            f'<rect x="{x:.1f}" y="2" width="{span:.1f}" height="16" fill="{fill}" '
            f'stroke="var(--page)"><title>{escape(told)}</title></rect>'
        )
    told = f"States over {duration(whole_s)}; grey: paused or failed"
    marks.append(f'<text x="{RIGHT}" y="34">{escape(told)}</text>')
    return svg(40, marks, told)


def _seconds(at: str) -> float:
    return datetime.fromisoformat(at).replace(tzinfo=UTC).timestamp()
