"""Composition root: read settings, build, start, stop.

The only module that turns settings into objects; everything below takes plain values.
"""

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from app import __version__
from app.api import native, openai, operations
from app.api.boundary import install
from app.encoder.catalog import NOMIC_V1_5, ModelSpec, resolve
from app.encoder.model import EmbeddingModel
from app.encoder.opener import ModelOpener, Progress
from app.errors import SettingsError
from app.gguf.loader import StreamingGGUFLoader
from app.memory import allocator
from app.memory.cores import available_cores
from app.memory.monitor import MemoryMonitor
from app.serving.executor import WaveExecutor
from app.serving.service import Embeddings, EmbeddingService, EmbedTask
from app.serving.slot import ModelSlot
from app.settings import Settings
from app.telemetry import Telemetry

log = logging.getLogger("plimsoll")

SHUTDOWN_TIMEOUT_S = 30
# The command line embeds this many texts between two moves of its progress bar.
EMBED_TEXTS = 64
# Above this share of the budget a load slows down its reading.
LOAD_PRESSURE_RATIO = 0.70


@dataclass
class _Drain:
    """Whether the server is on its way out; owned by the server's signal handling."""

    started: bool = False


def make_opener(settings: Settings, monitor: MemoryMonitor, spec: ModelSpec) -> ModelOpener:
    """What opens `spec` under these settings."""
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
        )

    return ModelOpener(
        spec,
        cache,
        make_loader,
        n_threads=engine_threads(settings),
        exact=settings.exact,
        allow_memory_backed=settings.cache_on_tmpfs,
    )


def engine_threads(settings: Settings) -> int:
    """Threads that compute: as set, else one a core that the process may use."""
    return settings.threads or available_cores()


def served_names(spec: ModelSpec) -> tuple[str, ...]:
    """What clients may call the model: its own name first, then its aliases."""
    aliases = spec.known.aliases if spec.known else ()
    return tuple(dict.fromkeys((spec.name, *aliases)))


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


async def embed_texts(
    settings: Settings, task: EmbedTask, progress: Progress
) -> AsyncIterator[Embeddings]:
    """Embed a list without a server, EMBED_TEXTS at a time, as the service does."""
    telemetry = Telemetry(__version__)
    monitor = MemoryMonitor(settings.memory_budget_mib)
    spec = resolve(settings.model)
    opener = make_opener(settings, monitor, spec)
    slot = ModelSlot(spec.name, opener, telemetry, load_wait_s=None, idle_unload_s=0)
    slot.watch_progress(progress)
    executor = WaveExecutor(telemetry)
    budget_bytes = monitor.budget.budget_bytes
    service = EmbeddingService(slot, executor, telemetry, budget_bytes=budget_bytes)
    executor.start()
    try:
        for start in range(0, len(task.texts), EMBED_TEXTS):
            yield await service.embed(replace(task, texts=task.texts[start : start + EMBED_TEXTS]))
    finally:
        executor.stop()
        service.close()
        await slot.close()


def create_app(settings: Settings, drain: _Drain | None = None) -> FastAPI:
    """The whole server as an ASGI application; threads start with its lifespan."""
    drain = drain or _Drain()
    spec = resolve(settings.model)
    telemetry = Telemetry(__version__)
    monitor = MemoryMonitor(settings.memory_budget_mib)
    budget = monitor.budget

    def memory_numbers() -> tuple[int, int, int]:
        sample = monitor.sample()
        return sample.used_bytes, sample.resident_bytes, sample.budget_bytes

    telemetry.read_memory(memory_numbers)
    slot = ModelSlot(
        spec.name,
        make_opener(settings, monitor, spec),
        telemetry,
        load_wait_s=settings.load_wait_s,
        idle_unload_s=settings.idle_unload_s,
    )
    executor = WaveExecutor(telemetry)
    service = EmbeddingService(slot, executor, telemetry, budget_bytes=budget.budget_bytes)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        executor.start()
        watch = asyncio.create_task(slot.watch_idleness())
        preload = asyncio.create_task(_preload(slot)) if settings.preload else None
        try:
            yield
        finally:
            for task in filter(None, (watch, preload)):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            await asyncio.to_thread(executor.stop)
            service.close()
            await slot.close()

    app = FastAPI(
        title="Plimsoll",
        version=__version__,
        description="Text embeddings inside a memory budget.",
        lifespan=lifespan,
    )
    install(app, telemetry, body_limit_bytes=settings.body_limit_mib << 20)
    app.include_router(native.router(service))
    app.include_router(
        openai.router(service, model_names=served_names(spec), created=int(time.time()))
    )
    app.include_router(
        operations.router(
            slot, monitor, telemetry, version=__version__, draining=lambda: drain.started
        )
    )
    log.info(
        "Plimsoll %s: model %s, %d engine threads, budget %d MiB (%s), cache %s",
        __version__, spec.name, engine_threads(settings), budget.budget_bytes >> 20,
        budget.source, settings.cache_dir,
    )  # fmt: skip
    for note in monitor.notes:
        log.warning("%s", note)
    if settings.weights_in_place:
        log.warning(
            "PLIMSOLL_WEIGHTS_IN_PLACE is on: whoever changes or shortens the model file while it "
            "is served changes vectors or kills the server"
        )
    return app


class _Server(uvicorn.Server):
    """uvicorn's server that says it is draining before it stops taking requests."""

    def __init__(self, config: uvicorn.Config, drain: _Drain) -> None:
        super().__init__(config)
        self._drain = drain

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._drain.started = True
        super().handle_exit(sig, frame)


def serve(settings: Settings) -> None:
    """Run the server until a signal ends it."""
    workers = os.environ.get("WEB_CONCURRENCY", "1")
    if workers not in ("", "1"):
        raise SettingsError(
            f"WEB_CONCURRENCY is {workers}: two processes cannot own one memory budget. Plimsoll "
            "runs one process with as many engine threads as there are cores"
        )
    drain = _Drain()
    config = uvicorn.Config(
        create_app(settings, drain),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S,
        server_header=False,
    )
    if resolve(settings.model).known is not NOMIC_V1_5:
        log.info("to serve Nomic instead: PLIMSOLL_MODEL=%s ./scripts/serve", NOMIC_V1_5.name)
    # uvicorn raises the signal again once it has shut down: by default the process would then
    # look killed instead of finished.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    _Server(config, drain).run()


async def _preload(slot: ModelSlot) -> None:
    # The slot logs and remembers what went wrong; the next request tries again.
    with suppress(Exception):
        async with slot.lease():
            pass
