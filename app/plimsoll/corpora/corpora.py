"""The use cases of collections, and what they share: made and closed together."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from plimsoll.corpora.catalog import CollectionCatalog
from plimsoll.corpora.database import Database
from plimsoll.corpora.ingest import DocumentIngest
from plimsoll.corpora.reclaim import TableReclaim
from plimsoll.corpora.search import CollectionSearch


@dataclass(frozen=True)
class Corpora:
    """threads: that which reads, that which writes, that of vectors, and that of the reclaim."""

    database: Database
    catalog: CollectionCatalog
    ingest: DocumentIngest
    search: CollectionSearch
    reclaim: TableReclaim
    threads: tuple[ThreadPoolExecutor, ...]

    def close(self) -> None:
        """End searches, finish what else runs, then close the file; blocks."""
        self.search.stop()
        self.reclaim.stop()
        for thread in self.threads:
            thread.shutdown()
        self.search.close()
        self.database.close()
