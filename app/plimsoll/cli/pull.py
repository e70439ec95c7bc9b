"""`plimsoll pull`: a model's weights, made ready before they are served."""

from typing import Any

import click

from plimsoll.cli.help import Command
from plimsoll.cli.options import load, setting_options
from plimsoll.cli.progress import progress_of


@click.command(cls=Command)
@click.argument("model", required=False)
@setting_options("compute", "min_cosine", "cache_dir", "cache_on_tmpfs", "weights_in_place")
def pull(model: str | None, **overrides: Any) -> None:
    """Fetch MODEL and make its weights ready, so that serving starts at once."""
    from plimsoll.composition.models import prepare_model

    settings = load(overrides, model=model).settings
    with progress_of(settings.model) as progress:
        folder = prepare_model(settings, progress)
    click.echo(f"{settings.model} is ready in {folder}", err=True)
