"""Tells how a migration goes: in the log, and to a webhook of the operator's.

httpx is loaded where there is a webhook: without one no server waits for it, or holds it in memory.
"""

import asyncio
import logging
import ssl
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from plimsoll.errors import HookError
from plimsoll.migration.hooks.occasion import INTERVAL_S, Occasion
from plimsoll.migration.hooks.records import Answer
from plimsoll.migration.hooks.written import Options
from plimsoll.migration.status import MigrationStatus

log = logging.getLogger(__name__)


MOST_PORT = 65_535


def _web_address(address: str | None) -> str | None:
    if address is None:
        return None
    import httpx

    try:
        url = httpx.URL(address)
    except httpx.InvalidURL:  # which may hold a key
        raise ValueError("this is no address") from None
    if url.scheme not in ("http", "https") or not url.host or (url.port or 0) > MOST_PORT:
        raise ValueError("write an address that begins with http:// or https://")
    return address


class Notify(Options):
    """interval: seconds between two notices during a run. webhook: gets each as JSON by POST."""

    interval: Annotated[float, Field(ge=1, le=86_400)] = INTERVAL_S
    # Its path or query may be a key.
    webhook: Annotated[str | None, AfterValidator(_web_address), Field(repr=False)] = None


class Notices:
    """Tells of one run."""

    def __init__(self, options: Notify) -> None:
        self._webhook = options.webhook
        self._tls: ssl.SSLContext | None = None  # read once: it takes tens of milliseconds
        self._n_told = 0

    async def __call__(self, occasion: Occasion) -> Answer:
        """Tell once. Raises HookError where the webhook does not take it."""
        status = occasion.status
        told = f"{occasion.hook} is tried" if status is None else told_of(status)
        log.info("%s: %s", occasion.moment.value, told)
        if self._webhook is not None:
            await self._post(self._webhook, {"message": told, **occasion.as_json()})
        self._n_told += 1
        return Answer(reason=told, figures={"told": self._n_told})

    async def _post(self, webhook: str, content: dict[str, Any]) -> None:
        import httpx

        host = httpx.URL(webhook).host
        if self._tls is None:
            self._tls = await asyncio.to_thread(httpx.create_ssl_context)
        try:
            # The hook's own timeout ends it. What is answered beside the status is not read: it may
            # be longer than memory is.
            async with (
                httpx.AsyncClient(timeout=None, verify=self._tls) as client,  # noqa: S113
                client.stream("POST", webhook, json=content) as response,
            ):
                pass
        except httpx.HTTPError as error:
            why = str(error) or type(error).__name__
            raise HookError(f"the webhook at {host} cannot be told: {why}") from error
        if not response.is_success:
            raise HookError(f"the webhook at {host} answered {response.status_code}")


def told_of(status: MigrationStatus) -> str:
    """A migration in one line."""
    counts, migration = status.counts, status.counts.migration
    told = (
        f"migration {migration.id} of {migration.collection!r} is {status.state.value}: "
        f"{counts.n_vectors} of {counts.n_documents} documents, {counts.n_quarantined} quarantined"
    )
    if status.rows_per_s is not None:
        told += f", {status.rows_per_s:.0f}/s"
    if status.eta_s:
        told += f", {status.eta_s:.0f} s left"
    if status.yielding:
        told += f", yielding: {status.yielding}"
    if migration.verdict is not None and status.eta_s is None:
        told += f", verdict {migration.verdict['decision']}"
    return told
