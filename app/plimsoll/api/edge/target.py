"""What a request asks for, in the one form that routes know: no HEAD, no slash too many."""

import re

from starlette.types import Scope

# What stands before the path in the absolute form of a target (RFC 9112, 3.2.2).
_AUTHORITY = re.compile(r"https?://[^/]*", re.IGNORECASE)
_SLASHES = re.compile(r"/{2,}")
OF_DOCUMENTS = "/collections/"  # below it stand ids of documents, and an id may be an address


def routed(scope: Scope) -> Scope:
    """A copy of `scope` for the router.

    HEAD asks for what GET gives; the server, which keeps the request as it came, sends no body.
    A path with a slash at its end or two in a row is served: clients join an address that ends in
    one with a path that begins with one. A redirect would name an address that a client behind a
    proxy may not reach, and some clients make a GET of a redirected POST.
    A target in absolute form, as clients send it that take the server for a proxy, is its path.
    """
    return {
        **scope,
        "method": "GET" if scope["method"] == "HEAD" else scope["method"],
        "path": _path(scope["path"]),
    }


def _path(target: str) -> str:
    """The path of a target, without slashes that say nothing."""
    if target[:1] != "/":
        target = _AUTHORITY.sub("", target, count=1)
    path = "/" + target.strip("/")
    return path if path.startswith(OF_DOCUMENTS) else _SLASHES.sub("/", path)
