"""The operator's hooks: a TOML file that PLIMSOLL_HOOKS names. It alone says what is run.

always = ["enough-memory"]            # of every migration, before those that it names itself

[hooks.enough-memory]                 # the name by which job files and clients ask for it
builtin = "validate-memory --threshold 0.6"

[hooks.ticket]
command = ["/usr/local/bin/ticket", "--team", "search"]
when = ["before", "after"]
environment = { TICKET_QUEUE = "search" }
timeout_s = 20

[hooks.audit]
plugin = "acme_plimsoll.audit"        # a module that implements plimsoll_hook, see pluggy
when = "before-cutover"
"""

import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from plimsoll.errors import SettingsError
from plimsoll.files import who_else_may_write
from plimsoll.migration.hooks.catalog import HookCatalog
from plimsoll.migration.hooks.commands import CommandHook
from plimsoll.migration.hooks.occasion import Hook
from plimsoll.migration.hooks.records import PLUGIN_FAILED, Moment
from plimsoll.migration.hooks.written import BuiltinKind, hook_of
from plimsoll.mistakes import first_mistake, place_of, told
from plimsoll.nearest import did_you_mean

MOST_SECONDS = 86_400.0
PLUGIN_PROCESS = "plimsoll.migration.hooks.plugin_process"

HookName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]


def _listed(given: object) -> object:
    return [given] if isinstance(given, str) else given


class HookTable(BaseModel):
    """One hook as it is written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    builtin: str | None = None
    command: Annotated[list[str], Field(min_length=1)] | None = None
    plugin: Annotated[str, StringConstraints(pattern=r"^\w+(\.\w+)*$")] | None = None
    when: Annotated[frozenset[Moment], BeforeValidator(_listed), Field(min_length=1)] | None = None
    environment: dict[str, str] = {}
    timeout_s: Annotated[float, Field(gt=0, le=MOST_SECONDS)] | None = None
    interval_s: Annotated[float, Field(ge=1, le=MOST_SECONDS)] | None = None
    required: bool | None = None

    @model_validator(mode="after")
    def _is_one_thing(self) -> Self:
        given = [
            name for name in ("builtin", "command", "plugin") if getattr(self, name) is not None
        ]
        if len(given) != 1:
            raise ValueError("write one of builtin, command and plugin")
        if self.builtin is None and self.when is None:
            raise ValueError(f"say when: {', '.join(moment.value for moment in Moment)}")
        if self.builtin is not None and self.environment:
            raise ValueError("environment is of commands and plug-ins")
        return self

    @model_validator(mode="after")
    def _can_be_started(self) -> Self:
        words, names = self.command or [], [*self.environment]
        if words and "/" in words[0] and not words[0].startswith("/"):
            raise ValueError(
                f"command: {words[0]!r} is no whole path, and commands run in /: write one that "
                "begins with /, or a name that PATH has"
            )
        if any("\0" in text for text in (*words, *names, *self.environment.values())):
            raise ValueError("a command and its environment take no character 0")
        if unfit := [name for name in names if not name or "=" in name]:
            raise ValueError(f"environment: {unfit[0]!r} is no name of a variable")
        return self


class HooksFile(BaseModel):
    """The whole file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    always: list[HookName] = []
    hooks: dict[HookName, HookTable] = {}


def read_catalog(path: Path | None, builtin: Mapping[str, BuiltinKind]) -> HookCatalog:
    """The hooks that may be named: the built-in ones by their own names, and those of the file.

    Raises SettingsError, which says what in the file is wrong and what was perhaps meant.
    """
    hooks = {name: hook_of(name, name, builtin) for name in builtin}
    if path is None:
        return HookCatalog(hooks, ())
    try:
        if fault := who_else_may_write(path):
            raise SettingsError(f"PLIMSOLL_HOOKS: {path} says what this server runs, and {fault}")
        written = HooksFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise SettingsError(f"PLIMSOLL_HOOKS: {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"PLIMSOLL_HOOKS: {path} is no TOML: {error}") from error
    except ValidationError as error:
        raise SettingsError(f"PLIMSOLL_HOOKS: {path}: {_told(error)}") from error
    for name, table in written.hooks.items():
        try:
            hooks[name] = _hook(name, table, builtin)
        except SettingsError as error:
            raise SettingsError(f"PLIMSOLL_HOOKS: {path}: hooks.{name}: {error}") from error
    for name in written.always:
        if name not in hooks:
            hint = did_you_mean(name, hooks)
            raise SettingsError(f"PLIMSOLL_HOOKS: {path}: always: {name!r} is no hook; {hint}")
    return HookCatalog(hooks, written.always)


def _hook(name: str, table: HookTable, builtin: Mapping[str, BuiltinKind]) -> Hook:
    given = table.model_dump(include={"timeout_s", "interval_s", "required"}, exclude_none=True)
    if table.when is not None:
        given["moments"] = table.when
    if table.builtin is not None:
        return hook_of(name, table.builtin, builtin, **given)
    environment = table.environment
    if table.command is not None:
        command = table.command
        return Hook(
            name,
            "command",
            f"runs {Path(command[0]).name}",
            make=lambda: CommandHook(command, environment),
            **given,
        )
    argv = [sys.executable, "-P", "-m", PLUGIN_PROCESS, str(table.plugin)]
    return Hook(
        name,
        "plugin",
        f"asks the plug-in {table.plugin}",
        make=lambda: CommandHook(argv, environment, no_answer=PLUGIN_FAILED),
        **given,
    )


def _told(error: ValidationError) -> str:
    """The first mistake, in one line."""
    first = first_mistake(error)
    if first["type"] == "extra_forbidden":
        known: Any = HooksFile.model_fields if len(first["loc"]) == 1 else HookTable.model_fields
        return f"{place_of(first)} is no key; {did_you_mean(str(first['loc'][-1]), known)}"
    return told(first)
