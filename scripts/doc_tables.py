"""Write the tables of settings, metrics, memory and states in docs/ from the code that has them.

Prints the tables; `python -m scripts.doc_tables --write` puts each between its marks in the page of
its name: `<!-- settings -->` and `<!-- /settings -->` in docs/settings.md, and likewise the others.
"""

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from plimsoll.migration.states import NOTES, TRANSITIONS
from plimsoll.policy.lines import TABLE
from plimsoll.settings import PREFIX, Settings, allowed_values, as_written
from plimsoll.telemetry.metrics import Telemetry

DOCS = Path(__file__).parent.parent / "docs"


def settings_table() -> str:
    """Return one row per setting: variable, default, allowed values, description."""
    rows = ["| setting | default | allowed | meaning |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "unset" if field.default is None else f"`{as_written(field.default)}`"
        variable = f"`{PREFIX}{name.upper()}`"
        rows.append(f"| {variable} | {default} | {allowed_values(field)} | {field.description} |")
    return "\n".join(rows) + "\n"


def metrics_table() -> str:
    """Return one row per metric of Plimsoll's own: name as scraped, type, labels, meaning."""
    rows = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for metric in Telemetry("0").metrics():
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        rows.append(f"| `{metric.name}` | {metric.type} | {labels} | {metric.meaning} |")
    return "\n".join(rows) + "\n"


def memory_table() -> str:
    """Return one row per cause of a step of the memory ladder."""
    rows = ["| step | when | what happens |", "|---|---|---|"]
    rows += [f"| {row.step} | {row.when} | {'; '.join(row.effects)} |" for row in TABLE]
    return re.sub(r"(PLIMSOLL_\w+)", r"`\1`", "\n".join(rows)) + "\n"


def migration_table() -> str:
    """Return one row per state of a migration, with those that may follow."""
    rows = ["| state | meaning | what may follow |", "|---|---|---|"]
    for state, note in NOTES.items():
        following = (f"`{after.value}`: {why}" for after, why in TRANSITIONS[state].items())
        rows.append(f"| `{state.value}` | {note} | {'<br>'.join(following) or 'nothing'} |")
    return "\n".join(rows) + "\n"


TABLES: Mapping[str, Callable[[], str]] = {
    "settings": settings_table,
    "metrics": metrics_table,
    "memory": memory_table,
    "migration": migration_table,
}


def page_of(name: str) -> Path:
    """The page that a table stands in."""
    return DOCS / f"{name}.md"


def split_at_table(name: str) -> tuple[str, str, str]:
    """Return its page's text before, between and after a table's marks, which stay outside it.

    Raises ValueError when either mark is missing.
    """
    page = page_of(name).read_text(encoding="utf-8")
    mark = f"<!-- {name} -->\n"
    begin = page.index(mark) + len(mark)
    end = page.index(f"<!-- /{name} -->", begin)
    return page[:begin], page[begin:end], page[end:]


def main() -> None:
    """Print the tables, or write them into their pages."""
    for name, table in TABLES.items():
        if "--write" not in sys.argv[1:]:
            sys.stdout.write(table() + "\n")
            continue
        before, _, after = split_at_table(name)
        page_of(name).write_text(before + table() + after, encoding="utf-8")


if __name__ == "__main__":
    main()
