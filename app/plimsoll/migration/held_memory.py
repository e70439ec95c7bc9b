"""Memory that a migration holds for what it has read, asked for as background work is."""

from plimsoll.corpora.patient_embedder import Pause, Yielding
from plimsoll.errors import OverloadError, TooLargeError
from plimsoll.serving.gate import AdmissionGate, RequestPermit


class HeldMemory:
    """Owns the permits that stand for it.

    yielding: told why nothing is read now. pause: waits seconds.
    """

    def __init__(self, gate: AdmissionGate, yielding: Yielding, pause: Pause) -> None:
        self._gate = gate
        self._yielding = yielding
        self._pause = pause
        self._permits = set[RequestPermit]()

    async def hold(self, n_bytes: int) -> RequestPermit:
        """Hold so many bytes, waiting until there is room.

        Raises TooLargeError where there never will be.
        """
        permit = self._gate.permit()
        self._permits.add(permit)
        while True:
            try:
                await permit.wait_to_keep(n_bytes, yields=True)
                permit.keep(n_bytes, yields=True)
                return permit
            except OverloadError as error:
                self._yielding(str(error))
                wait_s = error.retry_after_s
            except TooLargeError:
                self.leave(permit)
                raise
            await self._pause(wait_s)

    def leave(self, permit: RequestPermit) -> None:
        """Give it back."""
        self._permits.discard(permit)
        permit.leave()

    def leave_all(self) -> None:
        """Give everything back."""
        for permit in list(self._permits):
            self.leave(permit)
