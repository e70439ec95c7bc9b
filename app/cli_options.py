"""What the commands share: an option for every setting, reading settings, a progress bar."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import click
from tqdm import tqdm

from app.logs import configure
from app.settings import Settings
from app.settings_sources import LoadedSettings, load_settings

log = logging.getLogger(__name__)


def setting_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add an option for each named setting (all of them without names)."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for name in reversed(names or tuple(Settings.model_fields)):
            field = Settings.model_fields[name]
            flag = f"--{name.replace('_', '-')}"
            # Values stay strings here: settings parse and check them like every other source.
            if field.annotation is bool:
                option = click.option(f"{flag}/--no-{flag[2:]}", name, default=None)
            else:
                option = click.option(flag, name, metavar="VALUE", help=field.description)
            command = option(command)
        return command

    return decorate


def load(overrides: Mapping[str, Any], **fixed: Any) -> LoadedSettings:
    """Read settings with these overrides and set up the log. Raises SettingsError."""
    given = {name: value for name, value in {**overrides, **fixed}.items() if value is not None}
    loaded = load_settings(given)
    configure(loaded.settings.log_level, loaded.settings.log_format)
    for name in loaded.ignored:
        log.info("ignoring %s: a container platform set it for a service of that name", name)
    return loaded


class byte_bar:  # noqa: N801
    """A progress bar that takes bytes done and in all; shown on a terminal only."""

    def __init__(self, title: str) -> None:
        self._bar = tqdm(
            desc=title, unit="B", unit_scale=True, unit_divisor=1024, disable=None, leave=False
        )

    def __enter__(self) -> Callable[[int, int], None]:
        def progress(done_bytes: int, total_bytes: int) -> None:
            self._bar.total = total_bytes
            self._bar.update(done_bytes - self._bar.n)

        return progress

    def __exit__(self, *reason: object) -> None:
        self._bar.close()
