"""`plimsoll config`: every setting, its value, what is used for it and where it comes from."""

import json
from pathlib import Path
from typing import Any

import click

from plimsoll.cli.help import Command
from plimsoll.cli.options import GROUPS, load, setting_options
from plimsoll.cli.tables import print_table
from plimsoll.settings import PREFIX, Settings, as_written, is_secret
from plimsoll.settings_sources import DEFAULT
from plimsoll.sizes import Size, rounded

HIDDEN = "(hidden)"


@click.command(cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@setting_options()
def config(as_json: bool, **overrides: Any) -> None:
    """Print every setting: its value, what is used for it here, and where it comes from.

    What is used differs from the value where that leaves it open, as 0 threads do, or is relative.
    """
    from plimsoll.composition.effective import effective_values

    loaded = load(overrides)
    names = [name for group in GROUPS.values() for name in group]
    values = {name: getattr(loaded.settings, name) for name in names}
    used = values | effective_values(loaded)
    if as_json:
        found = {
            name: {
                "value": _shown(name, values[name]),
                "effective": _shown(name, used[name]),
                "source": loaded.sources[name],
                "variable": f"{PREFIX}{name.upper()}",
            }
            for name in names
        }
        click.echo(json.dumps(found, indent=2))
        return
    rows = []
    for name in names:
        value, effective = (_shown(name, one[name]) for one in (values, used))
        written = "unset" if value is None else as_written(value)
        differs = _for_people(used[name], effective) if effective != value else ""
        source = loaded.sources[name]
        rows.append((name, written, differs, (source, "dim" if source == DEFAULT else "green")))
    print_table(("setting", "value", "used here", "source"), rows)


def _for_people(value: Any, shown: Any) -> str:
    return rounded(value) if isinstance(value, Size) else as_written(shown)


def _shown(name: str, value: Any) -> Any:
    """A value as JSON has it; a size or a path as it is written, a secret not at all."""
    if value is not None and is_secret(Settings.model_fields[name]):
        return HIDDEN
    return str(value) if isinstance(value, Size | Path) else value
