"""Put the homes of links together that the operator's file names.

Imported where there is such a file: most servers do without what reads files and tables.
"""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from plimsoll.corpora.corpora import Corpora
from plimsoll.errors import OutsideMismatchError, SettingsError
from plimsoll.links.configuration import FileLink, PostgresLink, read_links
from plimsoll.links.files.outside import MOST_IDLE_S, FileOutside
from plimsoll.links.files.parquet import arrow
from plimsoll.links.filler import Filler
from plimsoll.links.links import Home
from plimsoll.links.outside import Outside
from plimsoll.links.server import ServerIdentity
from plimsoll.links.work import FOLLOW_EVERY_S, LinkWork
from plimsoll.serving.core import ServingCore
from plimsoll.telemetry.metrics import Telemetry


def homes_of(
    file: Path,
    corpora: Corpora,
    core: ServingCore,
    telemetry: Telemetry,
    environ: Mapping[str, str],
) -> dict[str, Home]:
    """Homes by the name of their link; see `build_links`, whose errors it raises."""
    server = ServerIdentity(corpora.database.path.parent)
    return {
        name: _home(name, link, server, corpora, core, telemetry, environ)
        for name, link in read_links(file).items()
    }


def _home(
    name: str,
    link: PostgresLink | FileLink,
    server: ServerIdentity,
    corpora: Corpora,
    core: ServingCore,
    telemetry: Telemetry,
    environ: Mapping[str, str],
) -> Home:
    outside = _outside(name, link, server, environ)
    thread = ThreadPoolExecutor(1, thread_name_prefix=f"link-{name}")
    filler = Filler(corpora.database, core.service, core.gate, thread, asyncio.sleep)
    most_idle_s = MOST_IDLE_S if isinstance(link, FileLink) else FOLLOW_EVERY_S
    work = LinkWork(name, outside, corpora.database, filler, telemetry.corpora, thread, most_idle_s)
    return Home(
        kind=link.kind,
        outside=outside,
        model=link.model,
        space=link.space,
        dimensions=link.dimensions,
        follows=link.follow,
        work=work,
        thread=thread,
    )


def _outside(
    name: str,
    link: PostgresLink | FileLink,
    server: ServerIdentity,
    environ: Mapping[str, str],
) -> Outside:
    if isinstance(link, FileLink):
        return _files(name, link, server)
    url = environ.get(link.url_env)
    if not url:
        raise SettingsError(
            f"PLIMSOLL_LINKS: links.{name}.url_env: the variable {link.url_env} is not set; it "
            "takes the connection string, such as postgresql://USER:PASSWORD@HOST/DATABASE"
        )
    try:
        from plimsoll.links.postgres.catalog import Place
        from plimsoll.links.postgres.table import PostgresTable
    except ImportError as missing:
        raise SettingsError(
            f"PLIMSOLL_LINKS: links.{name}: {missing.name} is not installed: pip install "
            "'.[postgres]' in a checkout"
        ) from missing
    place = Place(link.db_schema, link.table, link.id, link.text, link.vector, link.url_env)
    return PostgresTable(place, url, server)


def _files(name: str, link: FileLink, server: ServerIdentity) -> Outside:
    if link.kind == "parquet":
        try:
            arrow()
        except OutsideMismatchError as missing:
            raise SettingsError(f"PLIMSOLL_LINKS: links.{name}: {missing}") from missing
    return FileOutside(link, server)
