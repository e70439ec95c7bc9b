"""Where settings come from, and what an operator is told about a wrong one.

Command line > environment > .env > TOML file > default. The layers are read here rather than by
pydantic-settings, so that every value and every mistake can be named with its place.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dotenv.parser import Binding, parse_stream
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from plimsoll.errors import SettingsError
from plimsoll.mistakes import words_of
from plimsoll.nearest import nearest_to
from plimsoll.settings import PREFIX, Settings, allowed_values, is_secret

COMMAND_LINE = "command line"
ARGUMENT = "argument"
ENVIRONMENT = "environment"
ENV_FILE = ".env"
TOML_FILE = "plimsoll.toml"
DEFAULT = "default"

EXACT_HAS_GONE = (
    "PLIMSOLL_EXACT has no effect any more, and the next release will refuse it: a vector's bits "
    "never depend on the texts beside it"
)

# Kubernetes puts the addresses of a Service named "plimsoll" (or "plimsoll-…") into the environment
# of every pod beside it: PLIMSOLL_PORT=tcp://10.0.0.7:80, PLIMSOLL_SERVICE_HOST, …
_SERVICE_VARIABLE = re.compile(
    PREFIX + r"(\w+_)?(SERVICE_HOST=|SERVICE_PORT(_\w+)?=|PORT_\d+_\w+=|PORT=(tcp|udp|sctp)://)"
)


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """Settings with the place of each value.

    sources: field → "command line", "argument", "environment", ".env", the TOML file's name,
        "XDG_CACHE_HOME", "XDG_DATA_HOME" or "default".
    ignored: environment variables with our prefix that Kubernetes set about a Service.
    toml_file: the file that was read, None where there is none.
    """

    settings: Settings
    sources: Mapping[str, str]
    ignored: tuple[str, ...] = ()
    toml_file: Path | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to tell of settings that are taken and have no effect."""
        return (EXACT_HAS_GONE,) if self.settings.exact else ()


def load_settings(
    overrides: Mapping[str, object] | None = None,
    *,
    given_by: str = COMMAND_LINE,
    environ: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> LoadedSettings:
    """Merge the layers and validate the result.

    overrides: the caller's values by field name; None means not given.
    given_by: what the caller's own user calls them: the command line, or a function's argument.
    environ: the environment, this process's own by default; an empty variable counts as unset.
    directory: where .env, plimsoll.toml and a relative PLIMSOLL_CONFIG are looked up, the
        working folder by default. Other programs' names in .env are left alone.
    Raises SettingsError with one line per mistake, never with a secret's value.
    """
    environ = os.environ if environ is None else environ
    directory = Path() if directory is None else directory  # also one that was deleted
    given = {name: value for name, value in (overrides or {}).items() if value is not None}
    links = {name for name in environ if _SERVICE_VARIABLE.match(f"{name}={environ[name]}")}
    variables = {name: text for name, text in environ.items() if name not in links}
    layers: list[tuple[str, Mapping[str, object]]] = [
        (given_by, given),
        (ENVIRONMENT, _own_fields(variables)),
        (ENV_FILE, _own_fields(_read_env_file(directory / ENV_FILE))),
    ]
    chosen = next((layer["config"] for _, layer in layers if "config" in layer), None)
    place, toml_file = _find_toml_file(directory, chosen)
    layers.append((place, _read_toml_file(place, toml_file)))
    layers += [
        (home, _xdg_folder(environ, home, field))
        for home, field in (("XDG_CACHE_HOME", "cache_dir"), ("XDG_DATA_HOME", "data_dir"))
    ]

    values: dict[str, object] = {}
    sources = dict.fromkeys(Settings.model_fields, DEFAULT)
    problems = []
    for place, layer in layers:
        for field, value in layer.items():
            if field not in Settings.model_fields:
                problems.append(_explain_unknown(field, place))
            elif field not in values:
                values[field], sources[field] = value, place
    try:
        settings = Settings.model_validate(values)
    except ValidationError as invalid:
        problems += [_explain_invalid(error, sources) for error in invalid.errors()]
    if problems:  # raised out here, so that no traceback carries pydantic's copy of the values
        raise SettingsError("\n".join(problems))
    return LoadedSettings(settings, sources, tuple(sorted(links)), toml_file)


def _own_fields(variables: Mapping[str, str]) -> dict[str, str]:
    """Keep the variables with our prefix that are not empty, under their fields' names."""
    return {
        name.removeprefix(PREFIX).lower(): text.strip()
        for name, text in variables.items()
        if name.startswith(PREFIX) and text.strip()
    }


def _read_env_file(path: Path) -> dict[str, str]:
    """Read a .env file; text stands for itself, ${…} is not expanded."""
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8") as stream:
            bindings = list(parse_stream(stream))
    except (OSError, UnicodeDecodeError) as unreadable:
        raise SettingsError(f"{ENV_FILE} cannot be read: {unreadable}") from unreadable
    broken = [str(_line(binding)) for binding in bindings if binding.error]
    if broken:
        raise SettingsError(f"{ENV_FILE} line {', '.join(broken)}: not of the form NAME=value")
    return {binding.key: binding.value or "" for binding in bindings if binding.key is not None}


def _line(binding: Binding) -> int:
    """Return the line a statement begins on; the parser counts from the blank lines before it."""
    text = binding.original.string
    return binding.original.line + text[: len(text) - len(text.lstrip())].count("\n")


def _find_toml_file(directory: Path, chosen: object) -> tuple[str, Path | None]:
    """Return the TOML file's name and path: the chosen one, else plimsoll.toml if present."""
    name = TOML_FILE if chosen is None else str(chosen)
    try:
        path = directory / Path(name).expanduser()
        return name, path if chosen is not None or path.is_file() else None
    except (OSError, RuntimeError) as unreadable:
        raise SettingsError(f"settings file {name} cannot be read: {unreadable}") from unreadable


def _read_toml_file(name: str, path: Path | None) -> dict[str, object]:
    if path is None:
        return {}
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as unreadable:
        raise SettingsError(f"settings file {name} cannot be read: {unreadable}") from unreadable
    if "config" in values:
        raise SettingsError(f"config ({name}) is not allowed there: one file cannot name another")
    return values


def _xdg_folder(environ: Mapping[str, str], home: str, field: str) -> dict[str, Path]:
    """Follow the XDG Base Directory rules, which ignore a relative folder."""
    folder = Path(environ.get(home, ""))
    return {field: folder / "plimsoll"} if folder.is_absolute() else {}


def _spell(field: str, place: str) -> str:
    """Return a field's name as it is written at a place."""
    return PREFIX + field.upper() if place in (ENVIRONMENT, ENV_FILE) else field


def _explain_unknown(field: str, place: str) -> str:
    bare = field.lower().removeprefix(PREFIX.lower())
    guess = nearest_to(bare, Settings.model_fields)
    hint = f"did you mean {_spell(guess, place)}?" if guess else "no setting has a name like it"
    return f"{_spell(field, place)} ({place}) is not a setting; {hint}"


def _explain_invalid(error: ErrorDetails, sources: Mapping[str, str]) -> str:
    """Say in one line which value is wrong, where it stood and what is allowed."""
    own_words = words_of(error)
    if not error["loc"]:
        return own_words  # a relation between fields, which names them
    name = str(error["loc"][0])
    field, place = Settings.model_fields[name], sources[name]
    value = "its value (hidden)" if is_secret(field) else repr(error["input"])
    is_own = error["type"] == "value_error"
    reason = own_words if is_own else f"allowed: {allowed_values(field)}"
    return f"{_spell(name, place)} ({place}): {value} is not allowed; {reason}"
