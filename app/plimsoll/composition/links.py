"""Put the use cases of links together."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from plimsoll.corpora.corpora import Corpora
from plimsoll.links.links import Home, Links
from plimsoll.serving.core import ServingCore
from plimsoll.telemetry.metrics import Telemetry


def build_links(
    file: Path | None,
    corpora: Corpora,
    core: ServingCore,
    telemetry: Telemetry,
    environ: Mapping[str, str],
) -> Links:
    """The links of the operator's file, if there is one. environ: has the connection strings.

    Raises SettingsError for a file that is wrong, a variable that is not set, or an extra that is
    not installed.
    """
    homes = dict[str, Home]()
    if file is not None:
        from plimsoll.composition.homes import homes_of

        homes = homes_of(file, corpora, core, telemetry, environ)
    thread = ThreadPoolExecutor(1, thread_name_prefix="links")
    return Links(homes, corpora.database, corpora.catalog, thread)
