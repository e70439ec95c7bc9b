"""Put the use cases of collections together."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from plimsoll.corpora.catalog import CollectionCatalog
from plimsoll.corpora.corpora import Corpora
from plimsoll.corpora.database import FILE_NAME, Database
from plimsoll.corpora.ingest import DocumentIngest
from plimsoll.corpora.search import CollectionSearch
from plimsoll.serving.core import ServingCore
from plimsoll.telemetry.metrics import Telemetry

# One that reads while the other writes.
DOCUMENTS_THREADS = 2


def build_corpora(folder: Path, core: ServingCore, telemetry: Telemetry) -> Corpora:
    """Collections in `folder`, where nothing is made before their first use."""
    database = Database(folder / FILE_NAME)
    documents_thread = ThreadPoolExecutor(DOCUMENTS_THREADS, thread_name_prefix="documents")
    vectors_thread = ThreadPoolExecutor(1, thread_name_prefix="vectors")
    metrics = telemetry.corpora
    return Corpora(
        database=database,
        catalog=CollectionCatalog(database, core.models, metrics, documents_thread),
        ingest=DocumentIngest(database, core.service, core.gate, metrics, documents_thread),
        search=CollectionSearch(
            database, core.service, metrics, telemetry.pressure, documents_thread, vectors_thread
        ),
        threads=(documents_thread, vectors_thread),
    )
