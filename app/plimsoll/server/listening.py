"""Where the server listens: addresses of this machine, or sockets that a service manager gives."""

import ctypes
import errno
import logging
import os
import socket
import struct
import sys
from collections.abc import MutableMapping
from contextlib import suppress

from plimsoll.api.edge.origins import is_loopback
from plimsoll.composition.models import check_places
from plimsoll.errors import SettingsError
from plimsoll.settings import Settings, local_url

log = logging.getLogger("plimsoll")

STARTUP_FAILURE = 3  # exit code, as of uvicorn itself
ANY_ADDRESS = "::"
# Linux, asm-generic/socket.h; Python has no name for it.
SO_ATTACH_FILTER = 26
# For the kernel, packet by packet of a listening socket, from the TCP header on (bpf(4), RFC 9293):
# (operation, jump if true, jump if false, operand).
LET_NONE_CONNECT = (
    (0x30, 0, 0, 13),  # load the byte of the flags
    (0x54, 0, 0, 0x12),  # of them SYN and ACK
    (0x15, 0, 1, 0x02),  # SYN alone begins a connection
    (0x06, 0, 0, 0),  # drop it
    (0x06, 0, 0, 0xFFFFFFFF),  # take all others whole
)
FIRST_GIVEN = 3  # the first descriptor of those that a service manager gives: sd_listen_fds(3)


def claim(settings: Settings) -> tuple[list[socket.socket], bool]:
    """Listen, where these settings can be served at all; nothing is fetched or converted.

    Returns the sockets, and whether they are the service manager's, which keeps them.
    Raises SettingsError, ModelNotFoundError and CacheErrors; exits as `listen` does.
    """
    sockets = given_sockets(os.environ, os.getpid())
    are_given = bool(sockets)
    if are_given:
        for taken in sockets:
            _check_reach(settings, _host(taken), "the socket that the service manager gives is on")
    else:
        check_reach(settings)
        sockets = listen(settings)
    try:
        check_places(settings)
    except BaseException:
        for taken in sockets:
            taken.close()
        raise
    return sockets, are_given


def let_none_connect(listening: socket.socket) -> None:
    """Leave further attempts to connect without an answer; those under way get through.

    A socket that is closed resets what waits to be accepted, and between the last look at it and
    its end more may come. An attempt without an answer is made again a second later, and refused
    then: its client knows that nothing was sent. Does nothing where the system has no such filter.
    """
    if listening.family not in (socket.AF_INET, socket.AF_INET6) or sys.platform != "linux":
        return
    code = ctypes.create_string_buffer(
        b"".join(struct.pack("HBBI", *one) for one in LET_NONE_CONNECT)
    )
    program = struct.pack("HP", len(LET_NONE_CONNECT), ctypes.addressof(code))
    with suppress(OSError):  # a sandbox may forbid it
        listening.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def check_reach(settings: Settings) -> None:
    """Raises SettingsError where strangers would be served and nothing says that it is meant."""
    _check_reach(settings, settings.host, "PLIMSOLL_HOST is")


def _check_reach(settings: Settings, host: str | None, where: str) -> None:
    if settings.api_keys or settings.allow_anonymous or host is None or is_loopback(host):
        return
    raise SettingsError(
        f"{where} {host} and there are no keys, so every client that reaches it "
        "would be served: set PLIMSOLL_API_KEYS, or PLIMSOLL_ALLOW_ANONYMOUS=true if that is meant"
    )


def given_sockets(environ: MutableMapping[str, str], process: int) -> list[socket.socket]:
    """Listening sockets that a service manager has opened for this process; none where it has not.

    Protocol: sd_listen_fds(3). What says so is taken out of `environ`, since it is not for the
    processes that this one starts. Raises SettingsError for what does not listen.
    """
    names = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
    owner, number, _ = (environ.pop(name, "") for name in names)
    if owner != str(process) or not number.isdigit():
        return []
    sockets = []
    for descriptor in range(FIRST_GIVEN, FIRST_GIVEN + int(number)):
        os.set_inheritable(descriptor, False)
        given = socket.socket(fileno=descriptor)
        is_stream = given.type == socket.SOCK_STREAM
        if not is_stream or not given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            given.close()
            raise SettingsError(
                f"descriptor {descriptor}, which the service manager gives, does not listen for "
                "connections: use ListenStream= and Accept=no in the socket unit"
            )
        sockets.append(_ready(given))
    return sockets


def listen(settings: Settings) -> list[socket.socket]:
    """Listen on every address that the host has, so that one who connects waits for the server.

    Says in one line why it cannot, and exits with STARTUP_FAILURE.
    """
    host, port = settings.host, settings.port
    try:
        sockets = _sockets(host, port)
    except OSError as error:
        remedy = "set PLIMSOLL_HOST, or --host, to an address of this machine"
        if error.errno == errno.EADDRINUSE:
            remedy = "stop what uses it, or choose another one with PLIMSOLL_PORT or --port"
        elif error.errno == errno.EACCES:
            remedy = "choose a port from 1024 on with PLIMSOLL_PORT or --port"
        # A name that is not known has no number of the system's; the rest is told twice.
        is_system = isinstance(error.errno, int) and error.errno > 0
        reason = os.strerror(error.errno or 0) if is_system else error.strerror
        log.error("cannot listen on port %d of %s: %s; %s", port, host, str(reason).lower(), remedy)
        sys.exit(STARTUP_FAILURE)
    return [_ready(listening) for listening in sockets]


def announced(listening: socket.socket) -> str:
    """Where a socket is reached, for a person."""
    if _host(listening) is None:
        return f"the socket {listening.getsockname()}"
    host, port = listening.getsockname()[:2]
    if host == ANY_ADDRESS:
        return f"http://[{host}]:{port}, IPv4 too"
    is_ipv6 = listening.family == socket.AF_INET6
    return f"http://[{host}]:{port}" if is_ipv6 else f"http://{host}:{port}"


def own_url(listening: socket.socket) -> str | None:
    """Where a socket is reached from this machine; None where it has no port."""
    return None if _host(listening) is None else local_url(*listening.getsockname()[:2])


def _ready(listening: socket.socket) -> socket.socket:
    """For every connection of it: a reply's body does not wait until its head is acknowledged.

    That takes 40 ms. asyncio sees to it only for sockets that it has made itself.
    """
    if _host(listening) is not None:
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _host(listening: socket.socket) -> str | None:
    """The address of a socket; None for one in the file system, which has permissions instead."""
    if listening.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    return str(listening.getsockname()[0])


def _sockets(host: str, port: int) -> list[socket.socket]:
    if host == ANY_ADDRESS:  # which asyncio would take for IPv6 alone
        return [socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=True)]
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    for family, address in dict.fromkeys((family, address) for family, *_, address in found):
        try:
            sockets.append(socket.create_server(address, family=family))
        except OSError as error:
            # A host's name may stand for an IPv6 address too where the machine has no IPv6.
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                raise
            missing = error
    if not sockets and missing is not None:
        raise missing
    return sockets
