"""Turn settings into openers and models."""

from collections.abc import Mapping
from pathlib import Path

from plimsoll import files
from plimsoll.encoder.catalog import ModelSpec, resolve
from plimsoll.encoder.model import EmbeddingModel
from plimsoll.errors import SettingsError
from plimsoll.machine import allocator
from plimsoll.machine.cpu import CPUMonitor, available_cores
from plimsoll.machine.memory import MemoryMonitor
from plimsoll.models.hub import local_file
from plimsoll.models.opener import ModelOpener
from plimsoll.models.recognition import recognised
from plimsoll.models.slot import ModelSlot
from plimsoll.policy.lines import HIGH_RATIO
from plimsoll.settings import Settings
from plimsoll.sidecar.load_times import LoadTimes
from plimsoll.sidecar.loader import Progress, StreamingGGUFLoader, sidecars_folder
from plimsoll.telemetry.models import ModelMetrics


def make_opener(
    settings: Settings, monitor: MemoryMonitor, spec: ModelSpec, times: LoadTimes | None = None
) -> ModelOpener:
    """What opens `spec` under these settings; `times` is told how long loads take."""
    cache = settings.cache_dir
    allocator.tune()

    def make_loader(progress: Progress) -> StreamingGGUFLoader:
        return StreamingGGUFLoader(
            cache,
            in_place=settings.weights_in_place,
            allow_memory_backed=settings.cache_on_tmpfs,
            n_workers=engine_threads(settings),
            under_pressure=lambda: monitor.sample().utilization_ratio > HIGH_RATIO,
            progress=progress,
            times=times,
        )

    return ModelOpener(
        spec,
        cache,
        make_loader,
        n_threads=settings.threads or processors(),
        allow_memory_backed=settings.cache_on_tmpfs,
        compute=settings.compute,
        min_cosine=settings.min_cosine,
    )


def engine_threads(settings: Settings) -> int:
    """Threads that compute: as set, else one a core that the process may use now."""
    return settings.threads or available_cores()


def processors() -> int:
    """Processors that the process may run on, without regard to its quota."""
    return len(CPUMonitor().sample().cpus) or available_cores()


def served_names(spec: ModelSpec) -> tuple[str, ...]:
    """What clients may call the model: its own name first, then its aliases."""
    aliases = spec.known.aliases if spec.known else ()
    return tuple(dict.fromkeys((spec.name, *aliases)))


def _completed(
    spec: ModelSpec, names: tuple[str, ...], taken: set[str], cache_dir: Path
) -> tuple[str, ...]:
    """A model's names, with those that it gets where no other model has them; notes all in `taken`.

    Those of the verified model that a user's own file is, since clients have them built in; and one
    with "embed" in it, since some clients (n8n) list no other.
    """
    known = recognised(spec, cache_dir)
    further = () if known is None else (known.name, *known.aliases)
    names += tuple(name for name in further if name.lower() not in taken)
    listed = f"{spec.name}-embed"
    if not any("embed" in name.lower() for name in names) and listed.lower() not in taken:
        names = (*names, listed)
    taken.update(map(str.lower, names))
    return names


def make_models(
    settings: Settings, monitor: MemoryMonitor, metrics: ModelMetrics, times: LoadTimes
) -> list[ModelSlot]:
    """A slot for each model of these settings, the default first, none of them open.

    Raises ModelNotFoundError, and SettingsError where two would go by the same name.
    """
    named: list[tuple[ModelSpec, tuple[str, ...]]] = []
    written_by_name: dict[str, str] = {}
    aliases = _read_aliases(settings.model_aliases)
    for written, spec in _specs(settings):
        names = _with_aliases(served_names(spec), written, aliases)
        for name in names:
            other = written_by_name.get(name.lower())
            if other is not None:
                raise SettingsError(
                    f"PLIMSOLL_MODEL and PLIMSOLL_EXTRA_MODELS: {other!r} and {written!r} would "
                    f"both be called {name!r}; leave one out, or give its file another name"
                )
        written_by_name.update(dict.fromkeys(map(str.lower, (written, *names)), written))
        named.append((spec, names))
    strangers = {name for name in aliases.values() if name.lower() not in written_by_name}
    if strangers:
        raise SettingsError(
            f"PLIMSOLL_MODEL_ALIASES: no model that is served is called {', '.join(strangers)}; "
            f"there are {', '.join(spec.name for spec, _ in named)}"
        )
    taken = {name.lower() for _, names in named for name in names}
    models = []
    for spec, names in named:
        opener = make_opener(settings, monitor, spec, times)
        names = _completed(spec, names, taken, settings.cache_dir)
        models.append(ModelSlot(names, opener, metrics, idle_unload_s=settings.idle_unload_s))
    return models


def check_places(settings: Settings) -> None:
    """Raise what no server of these settings could serve with, before it listens.

    ModelNotFoundError for an unknown name or a path where there is no file, a CacheError for a
    cache folder that cannot be used.
    """
    cache = settings.cache_dir
    specs = [spec for _, spec in _specs(settings)]
    files.check_writable(sidecars_folder(cache, allow_memory_backed=settings.cache_on_tmpfs))
    for spec in specs:
        local_file(spec, cache)


def _specs(settings: Settings) -> list[tuple[str, ModelSpec]]:
    """The models to serve, the default first: each as it is written, and what that means."""
    extra = [written.strip() for written in (settings.extra_models or "").split(",")]
    asked = (settings.model, *filter(None, extra))
    named = [without_alias(written, settings) for written in asked]
    return [(written, resolve(written)) for written in named]


def without_alias(written: str, settings: Settings) -> str:
    """The model that an alias of these settings stands for; any other name stands for itself.

    Raises SettingsError for a setting that is not of the form alias=model.
    """
    aliases = _read_aliases(settings.model_aliases)
    by_name = {alias.lower(): model for alias, model in aliases.items()}
    return by_name.get(written.strip().lower(), written)


def spec_of(settings: Settings) -> ModelSpec:
    """The model of these settings, which may be one of their aliases.

    Raises ModelNotFoundError and SettingsError.
    """
    return resolve(without_alias(settings.model, settings))


def _read_aliases(text: str | None) -> dict[str, str]:
    """Alias → model, from `alias=model,alias=model`. Raises SettingsError."""
    aliases = {}
    for pair in filter(None, map(str.strip, (text or "").split(","))):
        alias, _, model = map(str.strip, pair.partition("="))
        if not alias or not model:
            raise SettingsError(f"PLIMSOLL_MODEL_ALIASES: {pair!r} is not of the form alias=model")
        aliases[alias] = model
    return aliases


def _with_aliases(
    names: tuple[str, ...], written: str, aliases: Mapping[str, str]
) -> tuple[str, ...]:
    """A model's names, and the aliases of any of them or of how the setting spells it."""
    known = {written.lower(), *map(str.lower, names)}
    further = (alias for alias, model in aliases.items() if model.lower() in known)
    return tuple(dict.fromkeys((*names, *further)))


def open_model(settings: Settings, progress: Progress) -> EmbeddingModel:
    """Open the model of these settings, for commands that embed without a server."""
    monitor = MemoryMonitor(settings.memory_budget)
    return make_opener(settings, monitor, spec_of(settings)).open(progress)


def prepare_model(settings: Settings, progress: Progress) -> Path:
    """Fetch and convert the model of these settings; returns its sidecar's folder."""
    monitor = MemoryMonitor(settings.memory_budget)
    sidecar = make_opener(settings, monitor, spec_of(settings)).prepare(progress)
    sidecar.close()
    return sidecar.folder
