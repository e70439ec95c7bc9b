"""`plimsoll verify`: a model's vectors beside published ones, or those of another file."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from plimsoll.cli.help import Command
from plimsoll.cli.options import load, setting_options
from plimsoll.cli.progress import progress_of
from plimsoll.settings import Settings

if TYPE_CHECKING:
    from plimsoll.encoder.model import EmbeddingModel


@click.command(cls=Command)
@click.option(
    "--against",
    type=click.Path(exists=True, path_type=Path),
    show_default="published vectors",
    help="Another GGUF file of the same model, such as its F32 form.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    default=0.999,
    help="Lowest cosine that passes.",
)
@setting_options("model", "threads", "cache_dir", "cache_on_tmpfs")
def verify(against: Path | None, threshold: float, **overrides: Any) -> None:
    """Compare the model's vectors with published ones, or with those of another file."""
    from plimsoll.models.verification import compare_models, compare_published

    settings = load(overrides).settings
    with _opened(settings) as model:
        if against is None:
            rows = compare_published(model)
            if not rows:
                raise click.ClickException(
                    f"no vectors are published for {model.traits.name}; compare it with another "
                    "file of the same model: plimsoll verify --against FILE.gguf"
                )
        else:
            other_settings = load({**overrides, "model": str(against)}).settings
            with _opened(other_settings) as other:
                rows = compare_models(model, other)
    for row in rows:
        click.echo(f"{row.cosine:.7f}  {row.label}")
    cosines = [row.cosine for row in rows]
    worst, mean = min(cosines), sum(cosines) / len(cosines)
    click.echo(f"worst {worst:.7f}, mean {mean:.7f} over {len(rows)} texts, threshold {threshold}")
    if not worst >= threshold:
        click.echo("plimsoll: below the threshold", err=True)
        sys.exit(1)


class _opened:  # noqa: N801 - reads as a function
    """An open model for the length of a `with` block, with its progress shown while it loads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __enter__(self) -> "EmbeddingModel":
        from plimsoll.composition.models import open_model

        with progress_of(self._settings.model) as progress:
            self._model = open_model(self._settings, progress)
        return self._model

    def __exit__(self, *reason: object) -> None:
        self._model.close()
