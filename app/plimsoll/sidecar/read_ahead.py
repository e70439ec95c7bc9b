"""How far the pipeline's reader may run ahead: a semaphore of bytes whose size follows memory."""

import threading
from typing import Final

MAX_BYTES: Final = 64 << 20
MIN_BYTES: Final = 1 << 20


class ReadAhead:
    """Bytes in flight, as they were read and expanded, between the reader and the disk.

    A watcher halves what is allowed while memory is above the line and doubles it below; one
    piece may always pass, so the load slows down and never stalls.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self.allowed_bytes = max_bytes
        self.in_flight_bytes = 0
        self._stopped = False
        self._changed = threading.Condition()

    def acquire(self, n_bytes: int) -> None:
        """Wait until `n_bytes` more may be in flight, or until there is no point in waiting."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._stopped
                    or self.in_flight_bytes == 0
                    or self.in_flight_bytes + n_bytes <= self.allowed_bytes
                )
            )
            self.in_flight_bytes += n_bytes

    def release(self, n_bytes: int) -> None:
        """Count bytes as freed."""
        with self._changed:
            self.in_flight_bytes -= n_bytes
            self._changed.notify_all()

    def adapt(self, *, under_pressure: bool) -> None:
        """Halve what is allowed under pressure, else double it up to the maximum.

        The first halving starts from what is in flight, so that it is felt at once.
        """
        with self._changed:
            if under_pressure:
                allowed = min(self.allowed_bytes, self.in_flight_bytes) // 2
            else:
                allowed = self.allowed_bytes * 2
            self.allowed_bytes = min(self.max_bytes, max(MIN_BYTES, allowed))
            self._changed.notify_all()

    def stop(self) -> None:
        """Let every waiting piece pass: it will be thrown away."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
