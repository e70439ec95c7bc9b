"""What the commands share: an option for every setting, reading settings."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from plimsoll.cli.help import GroupedOption
from plimsoll.settings import PREFIX, Settings, as_written, is_secret, kind_of
from plimsoll.settings_sources import LoadedSettings, load_settings
from plimsoll.sizes import Size
from plimsoll.telemetry.logs import configure

log = logging.getLogger(__name__)

# The order of the settings in help and documentation.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "Models": (
        "model",
        "extra_models",
        "model_aliases",
        "accept_token_ids",
        "max_open_models",
        "preload",
        "load_wait_s",
        "idle_unload_s",
    ),
    "Server": (
        "host",
        "port",
        "connections",
        "client_connections",
        "keep_alive_s",
        "header_limit",
        "header_timeout_s",
        "body_timeout_s",
        "send_timeout_s",
        "drain_s",
        "drain_delay_s",
    ),
    "Access": (
        "api_keys",
        "allow_anonymous",
        "metrics_open",
        "allowed_hosts",
        "cors_origins",
        "proxies",
    ),
    "Limits": (
        "client_concurrency",
        "client_requests_per_s",
        "client_tokens_per_s",
        "body_limit",
        "texts_limit",
        "json_values",
        "json_depth",
    ),
    "Engine": ("threads", "compute", "min_cosine", "exact"),
    "Memory": (
        "memory_budget",
        "queue_s",
        "queue_timeout_s",
        "recovery_timeout_s",
        "vector_cache",
    ),
    "Cache": ("cache_dir", "cache_on_tmpfs", "weights_in_place"),
    "Collections": ("data_dir", "links", "hooks"),
    "Logs and traces": ("log_level", "log_format", "otlp_endpoint"),
    "Settings file": ("config",),
}


def setting_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add an option for each named setting (all of them without names), in groups.

    A secret has none: every user of the machine can read the command lines of all processes.
    """
    wanted = names or tuple(Settings.model_fields)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for group, members in reversed(tuple(GROUPS.items())):
            for name in reversed(members):
                if name in wanted and not is_secret(Settings.model_fields[name]):
                    command = _option(name, group)(command)
        return command

    return decorate


def _option(name: str, group: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    field = Settings.model_fields[name]
    flag = name.replace("_", "-")
    default = "" if field.default is None else f"; default: {as_written(field.default)}"
    told: dict[str, Any] = {
        "cls": GroupedOption,
        "group": group,
        "help": f"{field.description}  [{PREFIX}{name.upper()}{default}]",
    }
    # Values stay strings here: settings parse and check them like every other source.
    if field.annotation is bool:
        return click.option(f"--{flag}/--no-{flag}", name, default=None, **told)
    return click.option(f"--{flag}", name, metavar=_metavar(name, field), **told)


def _metavar(name: str, field: FieldInfo) -> str:
    kind = kind_of(field)
    if choices := get_args(kind) if get_origin(kind) else ():
        return "|".join(choices)
    if name.endswith("_s") and not name.endswith("_per_s"):
        return "SECONDS"
    words = {Size: "SIZE", int: "NUMBER", float: "NUMBER", Path: "PATH"}
    return words.get(kind, name.rpartition("_")[2].upper())


def load(overrides: Mapping[str, Any], **fixed: Any) -> LoadedSettings:
    """Read settings with these overrides and set up the log. Raises SettingsError."""
    given = {name: value for name, value in {**overrides, **fixed}.items() if value is not None}
    loaded = load_settings(given)
    configure(loaded.settings.log_level, loaded.settings.log_format)
    for name in loaded.ignored:
        log.info("ignoring %s: a container platform set it for a service of that name", name)
    for warning in loaded.warnings:
        log.warning("%s", warning)
    return loaded
