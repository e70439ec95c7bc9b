"""The help of every command: what a user reads before anything else."""

from collections import Counter
from collections.abc import Iterator
from itertools import chain

import click
import pytest
from click.testing import CliRunner

from plimsoll.cli.commands import main
from plimsoll.cli.options import GROUPS
from plimsoll.settings import PREFIX, Settings, is_secret


def walk(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Every command with its words on the command line."""
    if isinstance(command, click.Group):
        if command.invoke_without_command:
            yield " ".join(path), command
        for name, part in command.commands.items():
            yield from walk(part, (*path, name))
    else:
        yield " ".join(path), command


COMMANDS = dict(walk(main))


def bare(text: str) -> str:
    return "".join(text.split())


def help_of(*arguments: str) -> str:
    """The help without blanks: where a line is folded does not matter."""
    done = CliRunner().invoke(main, [*arguments, "--help"])
    assert done.exit_code == 0
    return bare(done.output)


def test_every_setting_stands_in_one_group():
    """A setting without a group has no option, and no place in the documentation."""
    grouped = Counter(chain.from_iterable(GROUPS.values()))
    assert set(grouped.values()) == {1}
    assert set(grouped) == set(Settings.model_fields), "add the setting to GROUPS of cli/options.py"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is(name: str):
    """An option without a word on it is one that has to be tried."""
    command = COMMANDS[name]
    assert command.help
    options = [one for one in command.params if isinstance(one, click.Option)]
    assert [option.name for option in options if not option.help] == []


@pytest.mark.parametrize("name", [name for name in COMMANDS if name.startswith(("embed", "cache"))])
def test_every_option_says_what_holds_without_it(name: str):
    """A reader of the help wants to know what may be left out."""
    context = click.Context(COMMANDS[name], parent=click.Context(main, **main.context_settings))
    options = [one for one in COMMANDS[name].params if isinstance(one, click.Option)]
    told = {option.name: (option.get_help_record(context) or ("", ""))[1] for option in options}
    assert [option for option, words in told.items() if "default: " not in words] == []


@pytest.mark.parametrize("name", Settings.model_fields)
def test_the_option_of_a_setting_tells_meaning_variable_and_default(name: str):
    """The booleans too: the one that is unsafe says so."""
    field = Settings.model_fields[name]
    shown = help_of("serve")
    if is_secret(field):
        assert f"--{name.replace('_', '-')}" not in shown
        return
    assert bare(field.description or "") in shown
    assert f"[{PREFIX}{name.upper()}{']' if field.default is None else ';default:'}" in shown


def test_the_line_of_a_command_is_never_cut():
    """Half a sentence and three dots do not say what a command does."""
    shown = help_of()
    for name, command in main.commands.items():
        first = (command.help or "").split("\n\n")[0].removesuffix(".")
        assert f"{name}{bare(first)}." in shown
    assert "..." not in shown.replace("[ARGS]...", "")


def test_the_help_fits_80_columns():
    """The width of a terminal that was not widened."""
    for path in COMMANDS:
        done = CliRunner().invoke(main, [*path.split(), "--help"])
        assert max(map(len, done.output.splitlines())) <= 80, path
