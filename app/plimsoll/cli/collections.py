"""`plimsoll collections`: files into a collection of a running server, and back."""

from typing import Any
from urllib.parse import quote

import click

from plimsoll.cli.help import Group
from plimsoll.cli.server_options import ToldWaits, asks_server, client_of


@click.group(cls=Group)
def collections() -> None:
    """Fill a collection of a running server from files, or write one into files.

    \b
      plimsoll collections import ships.parquet --collection ships
      plimsoll collections export ships ships.parquet
      plimsoll collections export ships ships/ --vector embedding

    Files are JSON lines (.jsonl, .jsonl.gz) and, with the extra `parquet`, Parquet.
    """


@collections.command("import")
@click.argument("files", nargs=-1, required=True, metavar="FILES...")
@click.option("--collection", required=True, metavar="NAME", help="Made where it is not there.")
@click.option("--id", "id_column", default="id", metavar="COLUMN", help="With the id.")
@click.option("--text", "text_column", default="text", metavar="COLUMN", help="With the text.")
@click.option(
    "--vector", metavar="COLUMN", show_default="none", help="With a vector; goes with --space."
)
@click.option(
    "--space",
    metavar="NAME",
    help="Of these vectors: your name for that of another model, or a fingerprint.",
)
@click.option(
    "--metadata",
    metavar="COLUMNS",
    show_default="all others",
    help="Kept as metadata, with commas between; '' for none.",
)
@click.option(
    "--model",
    metavar="NAME",
    show_default="the server's, or none with --space",
    help="Of a collection that is made.",
)
@asks_server
def import_files(
    files: tuple[str, ...],
    collection: str,
    id_column: str,
    text_column: str,
    vector: str | None,
    space: str | None,
    metadata: str | None,
    model: str | None,
    **given: Any,
) -> None:
    """Put the rows of FILES into a collection: paths, folders of parts, patterns, or "-".

    "-" is JSON lines of standard input. A text without a vector is embedded by the server. What is
    stored already is skipped, so a command that was stopped is given again. A row that cannot be a
    document is left out and told, and then the exit code is 1.
    """
    from plimsoll.cli.file_import import FileImport, Target
    from plimsoll.links.files.rows import Columns

    if (vector is None) != (space is None):
        raise click.UsageError("--vector goes with --space: whose vectors they are has to be known")
    kept = None if metadata is None else tuple(filter(None, metadata.split(",")))
    columns = Columns(id_column, text_column, vector, kept)
    target = Target(client_of(given, ToldWaits()), collection, space, model)
    FileImport(target, columns).run(files, as_json=given["as_json"])


@collections.command("export")
@click.argument("collection")
@click.argument("target", metavar="TARGET")
@click.option("--id", "id_column", default="id", metavar="COLUMN", help="For the id.")
@click.option("--text", "text_column", default="text", metavar="COLUMN", help="For the text.")
@click.option("--vector", default="vector", metavar="COLUMN", help="For the vector.")
@click.option("--no-text", is_flag=True, help="Leave texts and metadata out.")
@click.option("--no-vectors", is_flag=True, help="Leave vectors out.")
@click.option(
    "--version",
    type=click.IntRange(min=1),
    metavar="NUMBER",
    show_default="the one that searches read",
    help="Vectors of this one; GET /collections/NAME lists them.",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["parquet", "jsonl"]),
    default="parquet",
    help="Of the parts in a folder.",
)
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@asks_server
def export(
    collection: str,
    target: str,
    id_column: str,
    text_column: str,
    vector: str,
    no_text: bool,
    no_vectors: bool,
    version: int | None,
    kind: str,
    force: bool,
    **given: Any,
) -> None:
    """Write a collection to TARGET: x.jsonl, x.jsonl.gz, x.parquet, a folder or "-".

    A folder gets parts of 10,000 documents, each whole once it has its name, and manifest.json when
    all are there; a command that was stopped goes on behind the last part. "-" is JSON lines to
    standard output. A file that is there is written over with --force alone, a folder never.
    """
    from plimsoll.cli.file_export import export_collection
    from plimsoll.links.files.rows import Columns

    export_collection(
        client_of(given),
        collection,
        target,
        Columns(id_column, text_column, None if no_vectors else vector),
        version=version,
        has_text=not no_text,
        kind=kind,
        writes_over=force,
        tells_json=given["as_json"],
    )


def path_of(collection: str, part: str = "") -> str:
    """A collection's path on the server."""
    return f"/collections/{quote(collection, safe='')}{part}"
