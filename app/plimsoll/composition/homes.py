"""Put the homes of links together that the operator's file names.

Imported where there is such a file: most servers do without what reads files and tables.
"""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from plimsoll.corpora.corpora import Corpora
from plimsoll.errors import OutsideMismatchError, SettingsError
from plimsoll.links.configuration import AnyLink, FileLink, QdrantLink, read_links
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
    link: AnyLink,
    server: ServerIdentity,
    corpora: Corpora,
    core: ServingCore,
    telemetry: Telemetry,
    environ: Mapping[str, str],
) -> Home:
    outside = outside_of(name, link, server, environ)
    thread = ThreadPoolExecutor(1, thread_name_prefix=f"link-{name}")
    filler = Filler(corpora.database, core.service, core.gate, thread, asyncio.sleep)
    work = LinkWork(
        name,
        outside,
        corpora.database,
        filler,
        telemetry.corpora,
        telemetry.links,
        thread,
        MOST_IDLE_S if isinstance(link, FileLink) else FOLLOW_EVERY_S,
    )
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


def outside_of(
    name: str, link: AnyLink, server: ServerIdentity, environ: Mapping[str, str]
) -> Outside:
    """What a link leads to, not opened yet. Raises SettingsError as `build_links` does."""
    if isinstance(link, FileLink):
        return _files(name, link, server)
    if isinstance(link, QdrantLink):
        return _qdrant(name, link, environ)
    url = _secret(
        environ,
        link.url_env,
        f"links.{name}.url_env",
        "the connection string, such as postgresql://USER:PASSWORD@HOST/DATABASE",
    )
    try:
        from plimsoll.links.postgres.catalog import Place
        from plimsoll.links.postgres.table import PostgresTable
    except ImportError as missing:
        raise _not_installed(name, missing, "postgres") from missing
    place = Place(link.db_schema, link.table, link.id, link.text, link.vector, link.url_env)
    return PostgresTable(place, url, server)


def _files(name: str, link: FileLink, server: ServerIdentity) -> Outside:
    if link.kind == "parquet":
        try:
            arrow()
        except OutsideMismatchError as missing:
            raise SettingsError(f"PLIMSOLL_LINKS: links.{name}: {missing}") from missing
    return FileOutside(link, server)


def _qdrant(name: str, link: QdrantLink, environ: Mapping[str, str]) -> Outside:
    where = f"links.{name}.url_env"
    url = _secret(environ, link.url_env, where, "the address, such as http://HOST:6333")
    if not url.startswith(("http://", "https://")):
        raise SettingsError(
            f"PLIMSOLL_LINKS: {where}: what {link.url_env} says is no address that begins with "
            "http:// or https://"
        )
    api_key = None
    if link.api_key_env is not None:
        api_key = _secret(environ, link.api_key_env, f"links.{name}.api_key_env", "the key")
    try:
        from plimsoll.links.qdrant.catalog import UNNAMED, Place
        from plimsoll.links.qdrant.outside import QdrantOutside
    except ImportError as missing:
        raise _not_installed(name, missing, "qdrant") from missing
    place = Place(link.alias, link.text, link.vector or UNNAMED, link.url_env)
    return QdrantOutside(place, url, api_key, link.read_again_s)


def _secret(environ: Mapping[str, str], variable: str, where: str, what: str) -> str:
    """What a variable says. Raises SettingsError where it is not set."""
    value = environ.get(variable)
    if not value:
        raise SettingsError(
            f"PLIMSOLL_LINKS: {where}: the variable {variable} is not set; it takes {what}"
        )
    return value


def _not_installed(name: str, missing: ImportError, extra: str) -> SettingsError:
    return SettingsError(
        f"PLIMSOLL_LINKS: links.{name}: {missing.name} is not installed: pip install "
        f"'.[{extra}]' in a checkout"
    )
