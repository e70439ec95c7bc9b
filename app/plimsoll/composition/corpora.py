"""Put the use cases of collections together."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from plimsoll.corpora.catalog import CollectionCatalog
from plimsoll.corpora.corpora import Corpora
from plimsoll.corpora.database import FILE_NAME, Database
from plimsoll.corpora.ingest import DocumentIngest
from plimsoll.corpora.reclaim import TableReclaim
from plimsoll.corpora.search import CollectionSearch
from plimsoll.corpora.search_reading import SearchReading
from plimsoll.serving.core import ServingCore
from plimsoll.telemetry.metrics import Telemetry

# A short reading passes a long one. Writers wait for each other, and have a thread of their own:
# those that wait would hold all that read.
READING_THREADS = 2


def build_corpora(folder: Path, core: ServingCore, telemetry: Telemetry) -> Corpora:
    """Collections in `folder`, where nothing is made before their first use."""
    database = Database(folder / FILE_NAME)
    reading_thread = ThreadPoolExecutor(READING_THREADS, thread_name_prefix="documents")
    writing_thread = ThreadPoolExecutor(1, thread_name_prefix="writing")
    vectors_thread = ThreadPoolExecutor(1, thread_name_prefix="vectors")
    reclaim_thread = ThreadPoolExecutor(1, thread_name_prefix="reclaim")
    reclaim = TableReclaim(database, reclaim_thread)
    metrics = telemetry.corpora
    return Corpora(
        database=database,
        catalog=CollectionCatalog(
            database, core.models, reclaim, metrics, reading_thread, writing_thread
        ),
        ingest=DocumentIngest(
            database, core.service, core.gate, metrics, reading_thread, writing_thread
        ),
        search=CollectionSearch(
            SearchReading(database, reading_thread, vectors_thread),
            core.service,
            metrics,
            telemetry.pressure,
        ),
        reclaim=reclaim,
        threads=(reading_thread, writing_thread, vectors_thread, reclaim_thread),
    )
