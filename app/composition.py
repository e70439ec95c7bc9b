"""Turn settings into objects: openers, models, the serving core.

With main.py the only place that knows settings; everything below takes plain values.
"""

from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from app import __version__
from app.encoder.catalog import ModelSpec, resolve
from app.encoder.model import EmbeddingModel
from app.encoder.opener import ModelOpener, Progress
from app.errors import SettingsError
from app.gguf.load_times import LoadTimes
from app.gguf.loader import StreamingGGUFLoader
from app.memory import allocator
from app.memory.cpu import CPUMonitor, available_cores
from app.memory.monitor import MemoryMonitor
from app.memory.resources import ResourceManager
from app.serving.core import ServingCore, ServingOptions
from app.serving.served_model import ServedModel
from app.serving.tasks import Embeddings, EmbedTask
from app.settings import Settings
from app.telemetry import Telemetry

if TYPE_CHECKING:  # needs the extra
    from app.tracing import RequestTracer

# The command line embeds this many texts between two moves of its progress bar.
EMBED_TEXTS = 64
# Above this share of the budget a load slows down its reading.
LOAD_PRESSURE_RATIO = 0.70


def make_opener(
    settings: Settings, monitor: MemoryMonitor, spec: ModelSpec, times: LoadTimes | None = None
) -> ModelOpener:
    """What opens `spec` under these settings; `times` is told how long loads take."""
    cache = settings.cache_dir
    allocator.tune()

    def make_loader(progress: Progress) -> StreamingGGUFLoader:
        return StreamingGGUFLoader(
            cache,
            compute=settings.compute,
            in_place=settings.weights_in_place,
            allow_memory_backed=settings.cache_on_tmpfs,
            n_workers=engine_threads(settings),
            under_pressure=lambda: monitor.sample().utilization_ratio > LOAD_PRESSURE_RATIO,
            progress=progress,
            times=times,
        )

    return ModelOpener(
        spec,
        cache,
        make_loader,
        n_threads=settings.threads or processors(),
        exact=settings.exact,
        allow_memory_backed=settings.cache_on_tmpfs,
    )


def engine_threads(settings: Settings) -> int:
    """Threads that compute: as set, else one a core that the process may use now."""
    return settings.threads or available_cores()


def processors() -> int:
    """Processors that the process may run on, whatever its quota is at the moment."""
    return len(CPUMonitor().sample().cpus) or available_cores()


def served_names(spec: ModelSpec) -> tuple[str, ...]:
    """What clients may call the model: its own name first, then its aliases."""
    aliases = spec.known.aliases if spec.known else ()
    return tuple(dict.fromkeys((spec.name, *aliases)))


def make_models(
    settings: Settings, monitor: MemoryMonitor, telemetry: Telemetry, times: LoadTimes
) -> list[ServedModel]:
    """The models of these settings, the default first, none of them open.

    Raises ModelNotFoundError, and SettingsError where two would go by the same name.
    """
    models = []
    written_by_name: dict[str, str] = {}
    extra = [written.strip() for written in (settings.extra_models or "").split(",")]
    for written in (settings.model, *filter(None, extra)):
        spec = resolve(written)
        names = served_names(spec)
        for name in names:
            other = written_by_name.get(name.lower())
            if other is not None:
                raise SettingsError(
                    f"PLIMSOLL_MODEL and PLIMSOLL_EXTRA_MODELS: {other!r} and {written!r} would "
                    f"both be called {name!r}; leave one out, or give its file another name"
                )
        written_by_name.update(dict.fromkeys(map(str.lower, names), written))
        opener = make_opener(settings, monitor, spec, times)
        models.append(ServedModel(names, opener, telemetry, idle_unload_s=settings.idle_unload_s))
    return models


def open_model(settings: Settings, progress: Progress) -> EmbeddingModel:
    """Open the model of these settings, for commands that embed without a server."""
    monitor = MemoryMonitor(settings.memory_budget_mib)
    return make_opener(settings, monitor, resolve(settings.model)).open(progress)


def prepare_model(settings: Settings, progress: Progress) -> Path:
    """Fetch and convert the model of these settings; returns its sidecar's folder."""
    monitor = MemoryMonitor(settings.memory_budget_mib)
    sidecar = make_opener(settings, monitor, resolve(settings.model)).prepare(progress)
    sidecar.close()
    return sidecar.folder


def make_core(
    settings: Settings,
    models: ResourceManager[EmbeddingModel],
    monitor: MemoryMonitor,
    telemetry: Telemetry,
    times: LoadTimes | None = None,
) -> ServingCore:
    """What serves these models under these settings."""
    options = ServingOptions(
        queue_s=settings.queue_s,
        queue_timeout_s=settings.queue_timeout_s,
        recovery_timeout_s=settings.recovery_timeout_s,
    )
    return ServingCore(models, monitor, CPUMonitor(), telemetry, options, times=times)


def make_tracer(settings: Settings) -> "RequestTracer | None":
    """What traces requests, where these settings say where to.

    Raises SettingsError where OpenTelemetry, which is an extra, is not installed.
    """
    if settings.otlp_endpoint is None:
        return None
    try:
        from app.tracing import RequestTracer, otlp_exporter
    except ImportError as missing:
        raise SettingsError(
            f"PLIMSOLL_OTLP_ENDPOINT is set and {missing.name} is not installed: "
            "pip install 'plimsoll[tracing]', or unset it"
        ) from missing
    return RequestTracer(otlp_exporter(settings.otlp_endpoint), __version__)


async def embed_texts(
    settings: Settings, task: EmbedTask, progress: Progress
) -> AsyncIterator[Embeddings]:
    """Embed a list without a server, EMBED_TEXTS at a time, as the service does."""
    telemetry = Telemetry(__version__)
    monitor = MemoryMonitor(settings.memory_budget_mib)
    spec = resolve(settings.model)
    opener = make_opener(settings, monitor, spec)
    model = ServedModel(served_names(spec), opener, telemetry, idle_unload_s=0)
    model.slot.watch_progress(progress)
    models = ResourceManager([model.slot], max_open=1, load_wait_s=None)
    core = make_core(settings, models, monitor, telemetry)
    try:
        async with core.running():
            for start in range(0, len(task.texts), EMBED_TEXTS):
                part = replace(task, texts=task.texts[start : start + EMBED_TEXTS])
                with ExitStack() as releases:
                    answer = await core.service.embed(part, releases)
                    assert isinstance(answer, Embeddings)  # noqa: S101 - the task has no fallback
                    yield answer
    finally:
        await models.close()
