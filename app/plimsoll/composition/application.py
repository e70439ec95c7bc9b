"""The whole server as an ASGI application."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from plimsoll import __version__
from plimsoll.api.application import build_application
from plimsoll.api.edge.clients import Clients
from plimsoll.api.edge.guard import AccessRules
from plimsoll.api.edge.json_body import JSONLimits
from plimsoll.api.edge.keys import Keys
from plimsoll.api.edge.origins import AllowedHosts, AllowedOrigins
from plimsoll.composition.corpora import build_corpora
from plimsoll.composition.links import build_links
from plimsoll.composition.migrations import build_migrations
from plimsoll.composition.models import engine_threads, make_models
from plimsoll.composition.serving import make_core
from plimsoll.errors import SettingsError
from plimsoll.machine.memory import MemoryMonitor
from plimsoll.models.pool import ModelPool
from plimsoll.policy.client_limits import ClientLimits
from plimsoll.policy.lines import HIGH_RATIO
from plimsoll.serving.control_loop import Monitors
from plimsoll.serving.core import Drain
from plimsoll.settings import Settings
from plimsoll.sidecar.load_times import LoadTimes
from plimsoll.telemetry.metrics import Telemetry

if TYPE_CHECKING:
    from fastapi import FastAPI

    from plimsoll.telemetry.tracing import RequestTracer

log = logging.getLogger("plimsoll")


def create_app(settings: Settings, drain: Drain | None = None) -> "FastAPI":
    """The whole server as an ASGI application; threads start with its lifespan."""
    telemetry = Telemetry(__version__)
    monitor = MemoryMonitor(settings.memory_budget)
    times = LoadTimes(telemetry.weights.tensor_loaded)
    models = ModelPool(
        make_models(settings, monitor, telemetry.models, times),
        max_open=settings.max_open_models,
        load_wait_s=settings.load_wait_s,
    )
    core = make_core(settings, models, Monitors(monitor, loads=times), telemetry, drain)
    corpora = build_corpora(settings.data_dir, core, telemetry)
    links = build_links(settings.links, corpora, core, telemetry, os.environ)
    migrations, survey = build_migrations(corpora, links, core, telemetry, settings.hooks)
    parsing = ThreadPoolExecutor(1, thread_name_prefix="parse")
    tracer = make_tracer(settings)

    @asynccontextmanager
    async def lifespan(app: "FastAPI") -> AsyncIterator[None]:
        if tracer is not None:
            tracer.start()
        await models.look()
        async with core.running():
            preload = asyncio.create_task(_preload(models)) if settings.preload else None
            corpora.reclaim.start()
            await migrations.start()
            await links.start()
            try:
                yield
            finally:
                await migrations.close()
                await links.close()
                if preload is not None:
                    preload.cancel()
                    with suppress(asyncio.CancelledError):
                        await preload
                parsing.shutdown()
                await asyncio.to_thread(corpora.close)
        await models.close()
        if tracer is not None:
            await asyncio.to_thread(tracer.stop)

    app = build_application(
        core,
        corpora,
        links,
        migrations,
        survey,
        telemetry,
        parsing=parsing,
        body_limit_bytes=settings.body_limit,
        body_timeout_s=settings.body_timeout_s,
        access=make_access(settings),
        accept_token_ids=settings.accept_token_ids,
        json_limits=JSONLimits(settings.json_values, settings.json_depth, settings.texts_limit),
        lifespan=lifespan,
        tracer=tracer,
    )
    _say_hello(settings, models, monitor)
    return app


def make_access(settings: Settings) -> AccessRules:
    """Which clients these settings let in. Raises SettingsError."""
    named = [] if settings.allowed_hosts is None else settings.allowed_hosts.split(",")
    origins = [] if settings.cors_origins is None else settings.cors_origins.split(",")
    limits = ClientLimits(
        settings.client_concurrency, settings.client_requests_per_s, settings.client_tokens_per_s
    )
    keys = settings.api_keys
    return AccessRules(
        None if keys is None else Keys(keys.get_secret_value(), limits),
        AllowedHosts([settings.host, *named]),
        AllowedOrigins(origins),
        settings.metrics_open,
        Clients(limits),
    )


def _say_hello(settings: Settings, models: ModelPool, monitor: MemoryMonitor) -> None:
    """Log what an operator should know at the start."""
    budget = monitor.budget
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
    if at_rest.utilization_ratio > HIGH_RATIO:
        log.warning(
            "the server at rest uses %d of its %d MiB already: only what is left is there for "
            "requests. Give it more memory",
            at_rest.used_bytes >> 20, at_rest.budget_bytes >> 20,
        )  # fmt: skip
    if settings.weights_in_place:
        log.warning(
            "PLIMSOLL_WEIGHTS_IN_PLACE is on: a change of the model file while it is served "
            "changes vectors, and shortening it kills the server"
        )


def make_tracer(settings: Settings) -> "RequestTracer | None":
    """What traces requests, where these settings say where to.

    Raises SettingsError where OpenTelemetry, which is an extra, is not installed.
    """
    if settings.otlp_endpoint is None:
        return None
    try:
        from plimsoll.telemetry.tracing import RequestTracer, otlp_exporter
    except ImportError as missing:
        raise SettingsError(
            f"PLIMSOLL_OTLP_ENDPOINT is set and {missing.name} is not installed: "
            "pip install '.[tracing]' in a checkout, or unset it"
        ) from missing
    return RequestTracer(otlp_exporter(settings.otlp_endpoint), __version__)


async def _preload(models: ModelPool) -> None:
    for slot in models.slots[: models.max_open]:
        # The slot logs and remembers what went wrong; the next request tries again.
        with suppress(Exception):
            async with models.lease(slot.name):
                pass
