"""How help is laid out: options in groups, and one line a command that is never cut."""

from collections.abc import Sequence
from typing import Any

import click

OTHER = "Options"


class GroupedOption(click.Option):
    """An option that stands under a heading of its own in the help."""

    def __init__(self, *args: Any, group: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


class Command(click.Command):
    """A command whose options stand in groups: its own first, then those of settings.

    A flag says that it is off.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for option in self.params:
            if (
                isinstance(option, click.Option)
                and option.is_flag
                and not option.secondary_opts
                and option.show_default is None
            ):
                option.show_default = "off"

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each group under its heading."""
        groups: dict[str, list[tuple[str, str]]] = {OTHER: []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                groups.setdefault(getattr(parameter, "group", OTHER), []).append(record)
        for heading, records in groups.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


class Group(click.Group):
    """Commands under headings, each with the whole first sentence of its help."""

    command_class = Command

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._headings: dict[str, list[str]] = {}

    def add_commands(self, heading: str, commands: Sequence[click.Command]) -> None:
        """Take these commands, under one heading."""
        for command in commands:
            self.add_command(command)
            self._headings.setdefault(heading, []).append(command.name or "")

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they were taken."""
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each heading with its commands."""
        longest = 10 * formatter.width  # of a sentence: none is as long, so none is cut
        for heading, names in (self._headings or {"Commands": self.list_commands(ctx)}).items():
            with formatter.section(heading):
                formatter.write_dl(
                    [(name, self.commands[name].get_short_help_str(longest)) for name in names]
                )


class CommandWithParts(Command, Group):
    """A command that does something itself, and has further commands below it."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, then the commands."""
        super().format_options(ctx, formatter)
        self.format_commands(ctx, formatter)
