"""`plimsoll inspect`: what a model's GGUF file holds and would cost here."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from plimsoll.cli.help import Command
from plimsoll.cli.options import load, setting_options
from plimsoll.errors import ModelNotFoundError


@click.command(cls=Command)
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@setting_options("threads", "memory_budget", "cache_dir")
def inspect(model: str, as_json: bool, **overrides: Any) -> None:
    """Say what MODEL (name, path or URL) holds, what it would cost here, and whether it runs."""
    from plimsoll.composition.models import engine_threads, without_alias
    from plimsoll.machine.cpu import CPUMonitor
    from plimsoll.machine.memory import MemoryMonitor
    from plimsoll.models.inspection import describe_machine, inspect_gguf

    settings = load(overrides).settings
    machine = describe_machine(MemoryMonitor(settings.memory_budget), CPUMonitor())
    file = _file_of(without_alias(model, settings), settings.cache_dir)
    report = inspect_gguf(
        file,
        n_threads=engine_threads(settings),
        machine=machine,
        cache_dir=settings.cache_dir,
    )
    click.echo(json.dumps(report.as_dict(), indent=2) if as_json else report.as_text())
    sys.exit(0 if report.supported else 1)


def _file_of(model: str, cache_dir: Path) -> str:
    """Path or address of the file. Raises ModelNotFoundError for one that is not here."""
    from plimsoll.encoder.catalog import resolve
    from plimsoll.models.hub import local_file

    if model.startswith(("http://", "https://")):
        return model
    path = local_file(resolve(model), cache_dir)
    if path is None:
        raise ModelNotFoundError(
            f"the file of {model} is not here; `plimsoll pull` fetches a model that has a name"
        )
    return str(path)
