"""`plimsoll models`: which models are verified, what they need, and whether they are here."""

import json
from typing import Any

import click

from plimsoll.cli.help import Command
from plimsoll.cli.options import load, setting_options
from plimsoll.cli.tables import print_table

STYLES = {"ready": "green", "fetched": "cyan", "absent": "dim"}


@click.command(cls=Command)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with all quantizations.")
@setting_options("threads", "cache_dir")
def models(as_json: bool, **overrides: Any) -> None:
    """List the verified models, and others in the cache: sizes, limits, memory, and if here."""
    from plimsoll.composition.models import engine_threads
    from plimsoll.models.listing import list_known_and_present

    settings = load(overrides).settings
    found = list_known_and_present(settings.cache_dir, engine_threads(settings))
    if as_json:
        click.echo(json.dumps([model.as_dict() for model in found], indent=2))
        return
    heads = ("model", "file", "dims", "tokens", "memory", "here")
    rows = (
        (
            model.name,
            _mib(model.file_bytes),
            str(model.dimensions),
            str(model.token_limit),
            f"{_mib(model.least_memory_bytes)}-{_mib(model.all_memory_bytes)}",
            (model.presence.value, STYLES[model.presence]),
        )
        for model in found
    )
    print_table(heads, rows, numbers=heads[1:5])
    for model in found:
        if len(model.quantizations) > 1:
            first, *others = model.quantizations
            click.echo(f"\n{model.name}: {first} above; also :{' :'.join(others)}", nl=False)
    click.echo(
        "\n\nMemory is what the server needs at least, and with all weights kept in memory."
        "\nAny other BERT or Nomic BERT model: a path, or hf:owner/repo/file.gguf."
        "\nFetch with `plimsoll pull MODEL`, look with `plimsoll inspect MODEL`."
    )


def _mib(n_bytes: int) -> str:
    return f"{round(n_bytes / (1 << 20))}M"
