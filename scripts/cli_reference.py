"""Write the reference of the command line from the commands themselves.

Prints it; `python -m scripts.cli_reference --write` puts it between its marks in docs/cli.md.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import click
from click.testing import CliRunner

from plimsoll.cli.commands import main as command_line

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"
MARKS = ("<!-- commands -->\n", "<!-- /commands -->")


def reference() -> str:
    """A table of the commands, then the help of each as a terminal of 80 columns shows it."""
    commands = list(_walk(command_line, "plimsoll"))
    rows = ["| command | what it does |", "|---|---|"]
    rows += [f"| `{path}` | {_first_sentence(command)} |" for path, command in commands]
    parts = ["\n".join(rows)]
    parts += [f"### {path}\n\n```text\n{_help_of(path)}```" for path, _ in commands]
    return "\n\n".join(parts) + "\n"


def _walk(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        if command.invoke_without_command:
            yield path, command
        for name, part in command.commands.items():
            yield from _walk(part, f"{path} {name}")
    else:
        yield path, command


def _first_sentence(command: click.Command) -> str:
    return command.get_short_help_str(10_000).removesuffix(".")


def _help_of(path: str) -> str:
    words = [*path.split()[1:], "--help"]
    return CliRunner().invoke(command_line, words, prog_name="plimsoll", terminal_width=80).output


def split_at_reference(page: str) -> tuple[str, str, str]:
    """Return the page's text before, between and after the marks, which stay outside it.

    Raises ValueError when either mark is missing.
    """
    begin = page.index(MARKS[0]) + len(MARKS[0])
    end = page.index(MARKS[1], begin)
    return page[:begin], page[begin:end], page[end:]


def main() -> None:
    """Print the reference, or write it into docs/cli.md."""
    if "--write" not in sys.argv[1:]:
        sys.stdout.write(reference())
        return
    before, _, after = split_at_reference(PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(before + reference() + after, encoding="utf-8")


if __name__ == "__main__":
    main()
