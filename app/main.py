"""The server: put it together, start it, stop it."""

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from types import FrameType

import uvicorn
from fastapi import FastAPI

from app import __version__
from app.api import native, openai, operations, rank, status
from app.api.boundary import install
from app.api.recent import RecentRequests
from app.composition import engine_threads, make_core, make_models, make_tracer
from app.encoder.catalog import NOMIC_V1_5, resolve
from app.encoder.model import EmbeddingModel
from app.errors import SettingsError
from app.gguf.load_times import LoadTimes
from app.memory.monitor import MemoryMonitor
from app.memory.resources import ResourceManager
from app.settings import Settings
from app.telemetry import Telemetry

log = logging.getLogger("plimsoll")

SHUTDOWN_TIMEOUT_S = 30
# A floor above this share of the budget leaves little for requests.
TIGHT_RATIO = 0.70


@dataclass
class _Drain:
    """Whether the server is on its way out; owned by the server's signal handling."""

    started: bool = False


def create_app(settings: Settings, drain: _Drain | None = None) -> FastAPI:
    """The whole server as an ASGI application; threads start with its lifespan."""
    drain = drain or _Drain()
    telemetry = Telemetry(__version__)
    monitor = MemoryMonitor(settings.memory_budget_mib)
    budget = monitor.budget

    def memory_numbers() -> tuple[int, int, int]:
        sample = monitor.sample()
        return sample.used_bytes, sample.resident_bytes, sample.budget_bytes

    telemetry.read_memory(memory_numbers)
    times = LoadTimes(telemetry.tensor_load_seconds.observe)
    served = make_models(settings, monitor, telemetry, times)
    models = ResourceManager(
        [model.slot for model in served],
        max_open=settings.max_open_models,
        load_wait_s=settings.load_wait_s,
    )
    core = make_core(settings, models, monitor, telemetry, times)
    parsing = ThreadPoolExecutor(1, thread_name_prefix="parse")
    recent = RecentRequests()
    tracer = make_tracer(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if tracer is not None:
            tracer.start()
        async with core.running():
            watch = asyncio.create_task(models.watch_idleness())
            preload = asyncio.create_task(_preload(models)) if settings.preload else None
            try:
                yield
            finally:
                for task in filter(None, (watch, preload)):
                    task.cancel()
                    with suppress(asyncio.CancelledError):
                        await task
                parsing.shutdown()
        await models.close()
        if tracer is not None:
            await asyncio.to_thread(tracer.stop)

    app = FastAPI(
        title="Plimsoll",
        version=__version__,
        description="Text embeddings inside a memory budget.",
        lifespan=lifespan,
        # FastAPI's own would send what errors say, which may quote a text.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    install(
        app,
        telemetry,
        recent,
        body_gate=core.gate,
        body_limit_bytes=settings.body_limit_mib << 20,
        body_timeout_s=settings.body_timeout_s,
        parsing=parsing,
        tracer=tracer,
    )
    app.include_router(native.router(core.service))
    app.include_router(rank.router(core.ranking))
    app.include_router(openai.router(core.service, models, created=int(time.time())))
    app.include_router(
        operations.router(
            served, core, monitor, telemetry, version=__version__, draining=lambda: drain.started
        )
    )
    app.include_router(status.router(core.watch, recent))
    log.info(
        "Plimsoll %s: %s, %d engine threads, budget %d MiB (%s), cache %s",
        __version__, ", ".join(slot.name for slot in models.slots), engine_threads(settings),
        budget.budget_bytes >> 20, budget.source, settings.cache_dir,
    )  # fmt: skip
    for source, limit_bytes in monitor.limits:
        log.info("memory limit of %s: %d MiB", source, limit_bytes >> 20)
    for note in monitor.notes:
        log.warning("%s", note)
    at_rest = monitor.sample()
    if at_rest.utilization_ratio > TIGHT_RATIO:
        log.warning(
            "the server at rest uses %d of its %d MiB already: only what is left is there for "
            "requests. Give it more memory",
            at_rest.used_bytes >> 20, at_rest.budget_bytes >> 20,
        )  # fmt: skip
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


async def _preload(models: ResourceManager[EmbeddingModel]) -> None:
    for slot in models.slots[: models.max_open]:
        # The slot logs and remembers what went wrong; the next request tries again.
        with suppress(Exception):
            async with models.lease(slot.name):
                pass
