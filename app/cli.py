"""The command line: `plimsoll COMMAND`. Thin: each command calls one use case and prints.

Heavy modules are imported inside the commands, so that `plimsoll --help` is quick.
"""

import asyncio
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from app import __version__
from app.cli_cache import cache
from app.cli_options import byte_bar, load, setting_options
from app.cli_simulate import simulate
from app.errors import PlimsollError
from app.settings import Settings

if TYPE_CHECKING:
    from app.encoder.model import EmbeddingModel
    from app.serving.tasks import Embeddings

INPUT_TYPES = ("search_document", "search_query", "classification", "clustering")


class _Commands(click.Group):
    """Turns every error that Plimsoll raises on purpose into one line and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PlimsollError as error:
            click.echo(f"plimsoll: {error}", err=True)
            ctx.exit(2)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="plimsoll")
def main() -> None:
    """Text embeddings inside a memory budget."""
    if sys.platform == "win32":
        raise click.ClickException("Plimsoll does not run on Windows; use its Docker image there")


@main.command()
@setting_options()
def serve(**overrides: Any) -> None:
    """Run the server."""
    settings = load(overrides).settings
    from app.main import serve as run

    run(settings)


@main.command()
@click.argument("model", required=False)
@setting_options("cache_dir", "cache_on_tmpfs", "weights_in_place")
def pull(model: str | None, **overrides: Any) -> None:
    """Fetch MODEL and make its weights ready, so that serving starts at once."""
    from app.composition import prepare_model

    settings = load(overrides, model=model).settings
    with byte_bar(f"preparing {settings.model}") as progress:
        folder = prepare_model(settings, progress)
    click.echo(f"{settings.model} is ready in {folder}", err=True)


@main.command()
@click.argument("texts", nargs=-1)
@click.option(
    "--file",
    "files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with a text a line; may be repeated.",
)
@click.option("--input-type", type=click.Choice(INPUT_TYPES), help="Task prefix.")
@click.option("--dimensions", type=click.IntRange(min=1), help="Values a vector.")
@click.option("--truncate/--no-truncate", default=True, help="Cut long texts, or refuse them.")
@setting_options("model", "threads", "exact", "cache_dir", "cache_on_tmpfs")
def embed(
    texts: tuple[str, ...],
    files: tuple[Path, ...],
    input_type: str | None,
    dimensions: int | None,
    truncate: bool,
    **overrides: Any,
) -> None:
    """Embed TEXTS and lines of files, or lines of standard input; prints JSON lines."""
    settings = load(overrides).settings
    lines = [*_arguments(texts), *(line for file in files for line in _lines_of(file))]
    if not texts and not files:
        lines.extend(_lines("standard input", sys.stdin.buffer))
    if not lines:
        raise click.UsageError("no texts: give arguments, --file, or lines on standard input")
    n_failed = asyncio.run(_embed(settings, lines, input_type, dimensions, truncate))
    if n_failed:
        click.echo(f"plimsoll: {n_failed} of {len(lines)} texts have no vector", err=True)
        sys.exit(1)


@main.command()
@click.argument("file")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@setting_options("threads", "memory_budget_mib")
def inspect(file: str, as_json: bool, **overrides: Any) -> None:
    """Say what a GGUF FILE (path or URL) holds, what it would cost here, and whether it runs."""
    from app.composition import engine_threads
    from app.encoder.inspection import describe_machine, inspect_gguf
    from app.memory.cpu import CPUMonitor
    from app.memory.monitor import MemoryMonitor

    settings = load(overrides).settings
    machine = describe_machine(MemoryMonitor(settings.memory_budget_mib), CPUMonitor())
    report = inspect_gguf(file, n_threads=engine_threads(settings), machine=machine)
    click.echo(json.dumps(report.as_dict(), indent=2) if as_json else report.as_text())
    sys.exit(0 if report.supported else 1)


@main.command()
@click.option(
    "--against",
    type=click.Path(exists=True, path_type=Path),
    help="Another GGUF file of the same model, such as its F32 form.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    default=0.999,
    show_default=True,
    help="Lowest cosine that passes.",
)
@setting_options("model", "threads", "cache_dir", "cache_on_tmpfs")
def verify(against: Path | None, threshold: float, **overrides: Any) -> None:
    """Compare the model's vectors with published ones, or with those of another file."""
    from app.encoder.verification import compare_models, compare_published

    settings = load(overrides, exact=True).settings
    with _opened(settings) as model:
        if against is None:
            rows = compare_published(model)
            if not rows:
                raise click.ClickException(
                    f"no vectors are published for {model.traits.name}; compare it with another "
                    "file of the same model: plimsoll verify --against FILE.gguf"
                )
        else:
            other_settings = load({**overrides, "model": str(against)}, exact=True).settings
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


main.add_command(cache)
main.add_command(simulate)


@main.command()
@setting_options()
def config(**overrides: Any) -> None:
    """Print every setting, its value and where it comes from."""
    loaded = load(overrides)
    width = max(len(name) for name in loaded.sources)
    for name, source in loaded.sources.items():
        value = getattr(loaded.settings, name)
        click.echo(f"{name:<{width}}  {value!s:<32}  {source}")


class _opened:  # noqa: N801 - reads as a function
    """An open model for the length of a `with` block, with a progress bar while it loads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __enter__(self) -> "EmbeddingModel":
        from app.composition import open_model

        with byte_bar(f"loading {self._settings.model}") as progress:
            self._model = open_model(self._settings, progress)
        return self._model

    def __exit__(self, *reason: object) -> None:
        self._model.close()


def _arguments(texts: Iterable[str]) -> Iterator[str]:
    """Texts of the command line, where bytes that are no UTF-8 stand as lone surrogates."""
    for number, text in enumerate(texts, 1):
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise click.UsageError(f"text {number} is not UTF-8")
        yield text


def _lines_of(file: Path) -> Iterator[str]:
    with file.open("rb") as stream:
        yield from _lines(str(file), stream)


def _lines(name: str, stream: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(stream, 1):
        try:
            yield line.rstrip(b"\r\n").decode()
        except UnicodeDecodeError as error:
            raise click.UsageError(f"line {number} of {name} is not UTF-8: {error}") from error


async def _embed(
    settings: Settings,
    lines: list[str],
    input_type: str | None,
    dimensions: int | None,
    truncate: bool,
) -> int:
    """Print a JSON line a text; returns how many have no vector."""
    from app.composition import embed_texts
    from app.serving.tasks import EmbedTask

    task = EmbedTask(lines, input_type, dimensions, truncate)
    start = n_failed = 0
    said: set[str] = set()
    with (
        byte_bar(f"loading {settings.model}") as progress,
        tqdm(total=len(lines), unit="text", disable=None) as bar,
    ):
        async for part in embed_texts(settings, task, progress):
            for warning in part.warnings:
                if warning not in said:
                    bar.write(f"plimsoll: {warning}", file=sys.stderr)
                    said.add(warning)
            for record in _records(part, start):
                n_failed += "error" in record
                click.echo(json.dumps(record, ensure_ascii=False))
            start += len(part.vectors)
            bar.update(len(part.vectors))
    return n_failed


def _records(part: "Embeddings", start: int) -> Iterator[dict[str, Any]]:
    failures = {failure.index: failure.message for failure in part.failures}
    cuts = {cut.index: cut for cut in part.truncated}
    for index, vector in enumerate(part.vectors):
        record: dict[str, Any] = {"index": start + index}
        if vector is None:
            record["error"] = failures[index]
        else:
            record["embedding"] = [float(f"{value:.9g}") for value in vector]
        if index in cuts:
            record["truncated"] = {"tokens": cuts[index].tokens, "kept": cuts[index].kept}
        yield record
