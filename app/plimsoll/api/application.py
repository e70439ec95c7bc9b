"""The web application: every route over the serving core, inside the edge."""

from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager
from time import time
from typing import TYPE_CHECKING

from fastapi import FastAPI

from plimsoll import __version__
from plimsoll.api.dialects import (
    cohere,
    collections,
    documents,
    native,
    ollama,
    openai,
    rank,
    surveys,
    tei,
)
from plimsoll.api.dialects import hooks as hook_routes
from plimsoll.api.dialects import links as link_routes
from plimsoll.api.dialects import migrations as migration_routes
from plimsoll.api.edge.guard import AccessRules
from plimsoll.api.edge.install import install
from plimsoll.api.edge.json_body import JSONLimits
from plimsoll.api.openapi import DESCRIPTION, TAGS, DocumentedAPI, operation_id
from plimsoll.api.operations import docs, health, status
from plimsoll.api.operations.recent import RecentRequests
from plimsoll.corpora.corpora import Corpora
from plimsoll.links.links import Links
from plimsoll.migration.migrations import Migrations
from plimsoll.migration.survey import CollectionSurvey
from plimsoll.serving.core import ServingCore
from plimsoll.serving.gate import RequestPermit
from plimsoll.telemetry.metrics import Telemetry

if TYPE_CHECKING:  # needs the extra
    from plimsoll.telemetry.tracing import RequestTracer

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def build_application(
    core: ServingCore,
    corpora: Corpora,
    links: Links,
    migrations: Migrations,
    survey: CollectionSurvey,
    telemetry: Telemetry,
    *,
    parsing: Executor,
    body_limit_bytes: int,
    body_timeout_s: float,
    access: AccessRules,
    accept_token_ids: bool = False,
    json_limits: JSONLimits | None = None,
    lifespan: Lifespan | None = None,
    tracer: "RequestTracer | None" = None,
    new_permit: Callable[[], RequestPermit] | None = None,
) -> FastAPI:
    """Put routes and edge around `core` and `corpora`; the lifespan starts and stops their threads.

    parsing: one thread for the JSON of large bodies and large replies; the caller ends it.
    access: which clients are answered. accept_token_ids: texts may come as ids to OpenAI's routes.
    json_limits: what a body may hold; None: as much as without settings.
    new_permit: for each request one; None: as the core's gate makes them.
    """
    app = DocumentedAPI(
        title="Plimsoll",
        version=__version__,
        description=DESCRIPTION,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        openapi_tags=TAGS,
        generate_unique_id_function=operation_id,
        openapi_url=None,  # operations/docs.py has these: FastAPI's pages load from elsewhere
        lifespan=lifespan,
        redirect_slashes=False,  # the edge takes them off
        # FastAPI's own would send what errors say, which may quote a text.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    recent = RecentRequests()
    refusals = install(
        app,
        telemetry,
        recent,
        new_permit=new_permit or core.gate.permit,
        body_limit_bytes=body_limit_bytes,
        body_timeout_s=body_timeout_s,
        parsing=parsing,
        access=access,
        json_limits=json_limits,
        tracer=tracer,
    )
    app.state.refusals = refusals
    refusals.register(tei.BASE, tei.ERRORS.render, tei.ERRORS.restate)
    for path in tei.OPENAI_PATHS:
        refusals.register(path, tei.OPENAI_ERRORS.render, tei.OPENAI_ERRORS.restate)
    for prefix, dialect in (("/v1", openai), ("/api", ollama), ("/v2", cohere)):
        refusals.register(prefix, dialect.ERRORS.render)
    # The router tries one after another, and these are asked for most.
    app.include_router(native.router(core.service))
    created = int(time())
    app.include_router(
        openai.router(core.service, core.models, created=created, accept_token_ids=accept_token_ids)
    )
    app.include_router(
        ollama.router(core.service, core.models, created=created, version=__version__)
    )
    app.include_router(cohere.router(core.service))
    app.include_router(rank.router(core.ranking))
    app.include_router(
        tei.router(
            core,
            telemetry,
            version=__version__,
            metrics_open=access.metrics_open,
            has_keys=access.keys is not None,
        )
    )
    app.include_router(collections.router(corpora.catalog, corpora.search))
    app.include_router(documents.router(corpora.catalog, corpora.ingest))
    app.include_router(surveys.router(survey))
    app.include_router(migration_routes.router(migrations))
    app.include_router(link_routes.router(links))
    app.include_router(hook_routes.router(migrations.hooks))
    app.include_router(
        health.router(
            core,
            telemetry,
            version=__version__,
            metrics_open=access.metrics_open,
            has_keys=access.keys is not None,
        )
    )
    app.include_router(status.router(core, recent))
    app.include_router(docs.router(app.openapi))
    return app
