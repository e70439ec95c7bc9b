"""`plimsoll embed`: texts in, rows out as they come, without a server."""

import logging
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from plimsoll.cli import INTERRUPTED, text_lines
from plimsoll.cli.help import Command
from plimsoll.cli.options import load, setting_options
from plimsoll.cli.progress import PhaseProgress, progress_of
from plimsoll.errors import OverloadError
from plimsoll.settings_sources import DEFAULT

if TYPE_CHECKING:
    from plimsoll.cli.row_files import RowFile
    from plimsoll.embedder import Embedder
    from plimsoll.serving.tasks import Embeddings

INPUT_TYPES = ("search_document", "search_query", "classification", "clustering")
# Of the texts without a vector, so many are named one by one where no row says why.
NAMED_FAILURES = 10
MOST_WAIT_S = 5.0  # between two tries while memory is short


@click.command(cls=Command)
@click.argument("texts", nargs=-1)
@click.option(
    "--file",
    "files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    show_default="standard input",
    help="File with a text a line; may be repeated.",
)
@click.option(
    "--input-type", type=click.Choice(INPUT_TYPES), show_default="none", help="Task prefix."
)
@click.option(
    "--dimensions",
    type=click.IntRange(min=1),
    show_default="all of the model's",
    help="Values a vector.",
)
@click.option("--truncate/--no-truncate", default=True, help="Cut long texts, or refuse them.")
@click.option(
    "--output",
    default="-",
    metavar="x.npy|x.parquet|-",
    help="Where rows go; - prints JSON lines, .parquet needs the extra `parquet`.",
)
@setting_options("model", "threads", "exact", "cache_dir", "cache_on_tmpfs")
def embed(
    texts: tuple[str, ...],
    files: tuple[Path, ...],
    input_type: str | None,
    dimensions: int | None,
    truncate: bool,
    output: str,
    **overrides: Any,
) -> None:
    """Embed TEXTS and lines of files, or lines of standard input for "-" or no TEXTS at all.

    A row is written as soon as its text has come, so a pipe that stays open gets its rows too.
    """
    loaded = load(overrides)
    settings = loaded.settings
    if loaded.sources["log_level"] == DEFAULT:  # what a server says of itself is no row's matter
        logging.root.setLevel(logging.WARNING)
    text_lines.check(texts, files)
    from plimsoll.cli.row_files import row_file
    from plimsoll.cli.standard_output import STANDARD_OUTPUT
    from plimsoll.embedder import Embedder

    size = dimensions or 0
    with row_file(output, lambda: size) as rows:
        with progress_of(settings.model) as progress:
            embedder = Embedder(settings=settings, progress=progress)
        with embedder:
            size = embedder.traits.check_dimensions(dimensions)
            if text_lines.reads_standard_input(texts, files) and sys.stdin.isatty():
                click.echo("plimsoll: reads a text a line from here; Ctrl-D ends", err=True)
            run = _Run(embedder, rows, input_type, dimensions, truncate)
            shows_rows = output == STANDARD_OUTPUT and sys.stdout.isatty()
            with progress_of(embedder.traits.name, "texts") as progress:
                run.embed(text_lines.batches(texts, files), None if shows_rows else progress)
    run.tell_end(says_why=output != STANDARD_OUTPUT)


class _Run:
    """Owns the counts of one command."""

    def __init__(
        self,
        embedder: "Embedder",
        rows: "RowFile",
        input_type: str | None,
        dimensions: int | None,
        truncate: bool,
    ) -> None:
        self._embedder = embedder
        self._rows = rows
        self._options = (input_type, dimensions)
        self._truncate = truncate
        self._n_texts = 0
        self._failures: list[str] = []
        self._n_failed = 0
        self._said: set[str] = set()
        self._is_interrupted = False

    def embed(self, batches: Iterable[list[str]], progress: PhaseProgress | None) -> None:
        """Embed every list and write its rows; Ctrl-C ends it after the rows that are there.

        Raises click.UsageError where there is not a single text.
        """
        try:
            for texts in batches:
                self._embed(texts)
                if progress is not None:
                    progress(self._n_texts, None, "embed")
        except KeyboardInterrupt:
            if not self._n_texts:
                raise
            self._is_interrupted = True
        if not self._n_texts:
            raise click.UsageError("no texts: give arguments, --file, or lines on standard input")

    def _embed(self, texts: list[str]) -> None:
        from plimsoll.embedder import rows_of

        found = self._vectors(texts)
        for warning in found.warnings:
            self._tell_once(warning)
        rows = list(rows_of(found, self._n_texts))
        self._rows.write(texts, rows)
        self._n_texts += len(rows)
        self._n_failed += len(found.failures)
        named = [f"text {row.index}: {row.error}" for row in rows if row.vector is None]
        self._failures += named[: NAMED_FAILURES - len(self._failures)]

    def _vectors(self, texts: list[str]) -> "Embeddings":
        """Embed a list, however long memory is short: what was written is not thrown away."""
        while True:
            try:
                return self._embedder.embed_batch(texts, *self._options, truncate=self._truncate)
            except OverloadError as error:
                self._tell_once("memory is short: waiting for room, Ctrl-C ends it")
                time.sleep(min(MOST_WAIT_S, error.retry_after_s))

    def _tell_once(self, words: str) -> None:
        if words not in self._said:
            self._said.add(words)
            click.echo(f"plimsoll: {words}", err=True)

    def tell_end(self, *, says_why: bool) -> None:
        """Say what is missing, and leave by an exit code that a script notices."""
        if says_why:
            for failure in self._failures:
                click.echo(f"plimsoll: {failure}", err=True)
        if self._n_failed:
            click.echo(
                f"plimsoll: {self._n_failed} of {self._n_texts} texts have no vector", err=True
            )
        if self._is_interrupted:
            click.echo(f"plimsoll: interrupted after {self._n_texts} texts", err=True)
            sys.exit(INTERRUPTED)
        if self._n_failed:
            sys.exit(1)
