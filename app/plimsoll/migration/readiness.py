"""Makes a version ready to be searched before the pointer moves to it, so that no search waits.

Its model is opened, and its vectors are copied to where searches read them. What cannot be made
ready is left to the searches themselves: it keeps no pointer from moving.
"""

import logging

from plimsoll.corpora.records import Version
from plimsoll.corpora.search import CollectionSearch
from plimsoll.errors import ModelLoadingError, OverloadError, TooLargeError
from plimsoll.migration.validation import MigrationJudge
from plimsoll.serving.gate import AdmissionGate

log = logging.getLogger(__name__)


class SearchReadiness:
    """Asks the model and the copies of vectors for a version."""

    def __init__(
        self, judge: MigrationJudge, search: CollectionSearch, gate: AdmissionGate
    ) -> None:
        self._judge = judge
        self._search = search
        self._gate = gate

    async def make_ready(self, version: Version) -> None:
        """Return once searches of a version find all they need, or cannot be helped.

        Raises StoreError.
        """
        permit = self._gate.permit()
        try:
            if await self._judge.can_embed_soon(version.space):
                await self._search.make_ready(version, permit)
        except (ModelLoadingError, OverloadError, TooLargeError) as error:
            log.warning("version %d is not ready to be searched: %s", version.id, error)
        finally:
            permit.leave()
