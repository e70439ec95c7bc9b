"""Under which names the server may be called, and which web pages may call it.

A page of another site can reach a server on its reader's machine: by a name of its own that it
lets point there (DNS rebinding), which the Host header shows, or straight away, which the Origin
header shows. An IP address cannot be rebound, and `localhost` is no name that a site can have.
"""

import re
from collections.abc import Iterable
from ipaddress import ip_address

from plimsoll.errors import SettingsError

ANY = "*"
DEFAULT_PORTS = {"http": ":80", "https": ":443"}

_HOST = re.compile(r"(?P<name>\[[^\[\]]+\]|[^\[\]:@/]+)(:[0-9]*)?")
_PATTERN = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]+)?")


def is_loopback(name: str) -> bool:
    """Whether a name or address without brackets means this machine alone."""
    return _is_local_name(name) or (_is_address(name) and ip_address(name).is_loopback)


class AllowedHosts:
    """The names that a Host header may hold, beside those that cannot be rebound.

    patterns: `example.org`, `*.example.org` for every name below it, `*` for any.
    Raises SettingsError for any other form.
    """

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        self._names: set[str] = set()
        self._endings: tuple[str, ...] = ()
        self._any = False
        for pattern in (pattern.strip().lower() for pattern in patterns):
            if pattern == ANY:
                self._any = True
            elif _is_address(pattern):
                continue  # every address is allowed
            elif not _PATTERN.fullmatch(pattern):
                raise SettingsError(
                    f"PLIMSOLL_ALLOWED_HOSTS: {pattern!r} is no name without a port, such as "
                    "example.org, *.example.org, or * for any"
                )
            elif pattern.startswith("*."):
                self._endings += (pattern[1:],)
            else:
                self._names.add(pattern)

    def allows(self, host: str) -> bool:
        """Whether a Host header's value, whose port does not matter, names this server."""
        found = _HOST.fullmatch(host.lower())
        if self._any or found is None:
            return self._any
        name = found["name"]
        if name.startswith("["):
            return _is_address(name[1:-1])
        name = name.removesuffix(".")
        is_ours = name in self._names or name.endswith(self._endings)
        return is_ours or _is_local_name(name) or _is_address(name)


class AllowedOrigins:
    """The origins whose pages may call the server, beside its own.

    origins: `https://app.example.org`, with the port where it is not the scheme's own; `*` for any.
    Raises SettingsError for any other form.
    """

    def __init__(self, origins: Iterable[str] = ()) -> None:
        self.listed = tuple(_without_default_port(origin.strip().lower()) for origin in origins)
        for origin in self.listed:
            if origin != ANY and not _ORIGIN.fullmatch(origin):
                raise SettingsError(
                    f"PLIMSOLL_CORS_ORIGINS: {origin!r} is no origin, such as "
                    "https://app.example.org without a path, or * for any"
                )

    def allows(self, origin: str, host: str | None) -> bool:
        """Whether the page behind an Origin header may call the server that is called `host`."""
        origin = origin.lower()
        if ANY in self.listed or origin in self.listed:
            return True
        scheme, _, authority = origin.partition("://")
        port = DEFAULT_PORTS.get(scheme)
        if port is None or host is None:
            return False
        return authority.removesuffix(port) == host.lower().removesuffix(port)


def _without_default_port(origin: str) -> str:
    """As browsers write it: the port of its scheme is left out."""
    scheme = origin.partition("://")[0]
    return origin.removesuffix(DEFAULT_PORTS.get(scheme, "?"))


def _is_local_name(name: str) -> bool:
    return name == "localhost" or name.endswith(".localhost")


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
