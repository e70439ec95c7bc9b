"""docs/cli.md, held against the commands."""

import re

import pytest
from click.testing import CliRunner

from plimsoll.cli.commands import main
from plimsoll.encoder.catalog import resolve
from scripts.cli_reference import PAGE, reference, split_at_reference


def test_the_reference_is_the_help_of_the_commands():
    """One source: the help is changed in the code, and the script writes the page."""
    written = split_at_reference(PAGE.read_text(encoding="utf-8"))[1]
    assert written == reference(), "run: python -m scripts.cli_reference --write"


def test_every_way_to_name_a_model_is_one():
    """A reader copies from the table."""
    page = PAGE.read_text(encoding="utf-8")
    section = page.split("## Naming a model")[1].split("\n## ")[0]
    for cell in re.findall(r"^\| (`[^|]*`) \|", section, flags=re.MULTILINE):
        for written in re.findall(r"`([^`]+)`", cell):
            assert resolve(written).name


@pytest.mark.parametrize("line", re.findall(r"^plimsoll .+", PAGE.read_text("utf-8"), re.M))
def test_every_example_is_a_command(line: str):
    """An option that was renamed would be found by a reader otherwise."""
    words = line.split("#")[0].removesuffix("\\").split()[1:]
    done = CliRunner().invoke(main, [*words, "--help"])
    assert done.exit_code == 0, done.output
