"""What is used where a setting leaves it open, as the server itself would work it out here."""

from collections.abc import Callable

from plimsoll.composition.models import engine_threads, without_alias
from plimsoll.errors import SettingsError
from plimsoll.machine.memory import MemoryMonitor
from plimsoll.policy import lines
from plimsoll.settings import Settings
from plimsoll.settings_sources import LoadedSettings
from plimsoll.sizes import Size


def effective_values(loaded: LoadedSettings) -> dict[str, object]:
    """Field → what is used, for the settings whose value alone does not say it.

    Where that cannot be told, the reason stands in its place: what is wrong with one setting must
    not hide the others from those who look for it.
    """
    settings, toml_file = loaded.settings, loaded.toml_file
    values: dict[str, Callable[[], object]] = {
        "threads": lambda: engine_threads(settings),
        "memory_budget": lambda: Size(_budget_bytes(settings)),
        "cache_dir": settings.cache_dir.absolute,
        "model": lambda: without_alias(settings.model, settings),
        "config": lambda: None if toml_file is None else toml_file.absolute(),
        "vector_cache": lambda: _cache_size(settings),
    }
    return {name: _told(work) for name, work in values.items()}


def _told(work: Callable[[], object]) -> object:
    try:
        return work()
    except SettingsError as error:
        return f"unknown: {error}"


def _budget_bytes(settings: Settings) -> int:
    return MemoryMonitor(settings.memory_budget).budget.budget_bytes


def _cache_size(settings: Settings) -> Size | None:
    if settings.vector_cache is None:
        return None
    return Size(lines.cache_bytes(settings.vector_cache, _budget_bytes(settings)))
