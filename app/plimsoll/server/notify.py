"""Tell a service manager how the server does, as systemd has it: ready, stopping, still alive.

Datagrams to the socket that it names, as sd_notify(3) and sd_watchdog_enabled(3) say. Without one
nothing is sent.
"""

import asyncio
import logging
import socket
from collections.abc import MutableMapping

log = logging.getLogger("plimsoll")

# Of the time after which the manager takes the server for dead.
BEATS = 3


class ServiceManager:
    """Knows where the manager listens, and how often it wants to hear.

    watchdog_s: seconds without a word after which it ends the server; None: it does not.
    """

    def __init__(self, address: str | None, watchdog_s: float | None = None) -> None:
        self._address = address
        self._watchdog_s = watchdog_s

    @classmethod
    def of(cls, environ: MutableMapping[str, str], process: int) -> "ServiceManager":
        """As the environment says, out of which that is taken: it is not for other processes."""
        address = environ.pop("NOTIFY_SOCKET", "")
        owner, usec = environ.pop("WATCHDOG_PID", ""), environ.pop("WATCHDOG_USEC", "")
        is_watched = owner in ("", str(process)) and usec.isdigit() and int(usec) > 0
        return cls(address or None, int(usec) / 1e6 if is_watched else None)

    def ready(self, where: str) -> None:
        """The server takes requests."""
        self._say("READY=1", f"STATUS=serving at {where}")

    def stopping(self, within_s: float) -> None:
        """The server ends; it may take so long, whatever the unit says."""
        self._say(
            "STOPPING=1",
            "STATUS=finishing requests under way",
            f"EXTEND_TIMEOUT_USEC={round(within_s * 1e6)}",
        )

    async def keep_alive(self) -> None:
        """Until cancelled: say again and again that the event loop turns."""
        while self._address is not None and self._watchdog_s is not None:
            self._say("WATCHDOG=1")
            await asyncio.sleep(self._watchdog_s / BEATS)

    def _say(self, *lines: str) -> None:
        if self._address is None:
            return
        address = self._address
        if address.startswith("@"):  # in the abstract name space
            address = f"\0{address[1:]}"
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sending:
                sending.setblocking(False)
                sending.sendto("\n".join(lines).encode(), address)
        except OSError as error:  # the manager's trouble must not become the clients'
            log.warning("cannot tell %s about the server: %s", self._address, error)
