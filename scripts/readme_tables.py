"""Write README's tables of settings and metrics from the code that defines them.

Prints the tables; `python -m scripts.readme_tables --write` puts each between its marks in
README.md, `<!-- settings -->` and `<!-- /settings -->` and likewise for metrics.
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from app.settings import PREFIX, Settings, allowed_values
from app.telemetry import Telemetry

README = Path(__file__).parent.parent / "README.md"


def settings_table() -> str:
    """Return one row per setting: variable, default, allowed values, description."""
    rows = ["| setting | default | allowed | meaning |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "unset" if field.default is None else f"`{_as_written(field.default)}`"
        variable = f"`{PREFIX}{name.upper()}`"
        rows.append(f"| {variable} | {default} | {allowed_values(field)} | {field.description} |")
    return "\n".join(rows) + "\n"


def metrics_table() -> str:
    """Return one row per metric of Plimsoll's own: name as scraped, type, labels, meaning."""
    rows = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for metric in Telemetry.metrics(Telemetry("0")):
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        rows.append(f"| `{metric.name}` | {metric.type} | {labels} | {metric.meaning} |")
    return "\n".join(rows) + "\n"


TABLES: Mapping[str, Callable[[], str]] = {"settings": settings_table, "metrics": metrics_table}


def split_at_table(readme: str, name: str) -> tuple[str, str, str]:
    """Return README's text before, between and after a table's marks, which stay outside it.

    Raises ValueError when either mark is missing.
    """
    mark = f"<!-- {name} -->\n"
    begin = readme.index(mark) + len(mark)
    end = readme.index(f"<!-- /{name} -->", begin)
    return readme[:begin], readme[begin:end], readme[end:]


def _as_written(default: object) -> str:
    """Spell a default as an operator would write it in the environment."""
    return str(default).lower() if isinstance(default, bool) else str(default).removesuffix(".0")


def main() -> None:
    """Print the tables, or write them into README.md."""
    for name, table in TABLES.items():
        if "--write" not in sys.argv[1:]:
            sys.stdout.write(table() + "\n")
            continue
        before, _, after = split_at_table(README.read_text(encoding="utf-8"), name)
        README.write_text(before + table() + after, encoding="utf-8")


if __name__ == "__main__":
    main()
