"""A built-in hook as an operator writes it: `validate-memory --threshold 0.6`."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from plimsoll.errors import SettingsError
from plimsoll.migration.hooks.occasion import INTERVAL_S, TIMEOUT_S, Ask, Hook
from plimsoll.migration.hooks.records import Moment
from plimsoll.mistakes import first_mistake, words_of
from plimsoll.nearest import did_you_mean


class Options(BaseModel):
    """What stands behind a hook's name; each with its default."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class BuiltinKind:
    """A hook that Plimsoll brings.

    options: their class. make: the hook for one run, by its options. interval: the option that says
    how often it looks, where there is one.
    """

    told: str
    moments: frozenset[Moment]
    options: type[Options]
    make: Callable[[Any], Ask]
    timeout_s: float = TIMEOUT_S
    interval_s: float = INTERVAL_S
    interval: str | None = None
    required: bool = True
    needs_migration: bool = False
    reads_status: bool = True


def hook_of(name: str, written: str, builtin: Mapping[str, BuiltinKind], **changed: Any) -> Hook:
    """The hook `name` that is a built-in one, as written. changed: fields of Hook.

    Raises SettingsError where there is no such hook or option.
    """
    try:
        kind_name, *words = shlex.split(written)
    except ValueError as error:
        raise SettingsError(f"{written!r} is no hook with its options: {error}") from error
    if kind_name not in builtin:
        raise SettingsError(
            f"{kind_name!r} is no built-in hook; {did_you_mean(kind_name, builtin)}"
        )
    kind = builtin[kind_name]
    options = _options(kind, kind_name, words)
    hook = Hook(
        name,
        "builtin",
        f"{kind.told}{_shown(options)}",
        kind.moments,
        make=lambda: kind.make(options),
        timeout_s=kind.timeout_s,
        interval_s=getattr(options, kind.interval) if kind.interval else kind.interval_s,
        required=kind.required,
        needs_migration=kind.needs_migration,
        builtin=kind_name,
        reads_status=kind.reads_status,
    )
    return replace(hook, **changed)


def _shown(options: Options) -> str:
    """Options as `plimsoll hooks list` shows them, but those that may hold a secret."""
    shown = [
        f"{name} {value if field.repr else '(hidden)'}"
        for name, field in type(options).model_fields.items()
        if (value := getattr(options, name)) is not None
    ]
    return f" ({', '.join(shown)})" if shown else ""


def _options(kind: BuiltinKind, name: str, words: list[str]) -> Options:
    known = {f"--{field.replace('_', '-')}": field for field in kind.options.model_fields}
    given = dict[str, str]()
    left = iter(words)
    for word in left:
        flag, equals, value = word.partition("=")
        if flag not in known:
            raise SettingsError(f"{flag!r} is no option of {name}; {did_you_mean(flag, known)}")
        if not equals:
            value = next(left, "")
        given[known[flag]] = value
    try:
        return kind.options.model_validate(given)
    except ValidationError as error:
        first = first_mistake(error)
        flag = f"--{str(first['loc'][0]).replace('_', '-')}"
        raise SettingsError(f"{name} {flag}: {words_of(first)}") from error
