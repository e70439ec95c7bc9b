"""Tables for people: coloured and folded to a terminal's width, whole lines anywhere else."""

import io
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import click

if TYPE_CHECKING:
    from rich.console import RenderableType

# Of a table that is not for a terminal: a line is never folded, so that grep and cut find it whole.
UNFOLDED_COLUMNS = 100_000


def print_table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str | tuple[str, str]]],
    *,
    numbers: Collection[str] = (),
) -> None:
    """Print rows under heads; a cell is text, or text and its style, such as ("ok", "green").

    numbers: heads whose columns stand to the right.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for place, head in enumerate(heads):
        justify: Literal["left", "right"] = "right" if head in numbers else "left"
        # What stands first is copied into other commands: it is never folded.
        table.add_column(head, justify=justify, overflow="fold", no_wrap=place == 0)
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else Text(*cell) for cell in row))
    print_rich(table)


def print_rich(renderable: "RenderableType") -> None:
    """Print what Rich draws, without blanks at the ends of lines."""
    from rich.console import Console

    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    console = Console(
        file=io.StringIO(),
        force_terminal=is_terminal,
        width=None if is_terminal else UNFOLDED_COLUMNS,
        highlight=False,
    )
    with console.capture() as drawn:
        console.print(renderable)
    click.echo("\n".join(line.rstrip() for line in drawn.get().splitlines()))
