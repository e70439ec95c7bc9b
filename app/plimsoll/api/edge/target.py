"""What a request asks for, in the one form that routes know: no HEAD, no slash at the end."""

import re

from starlette.types import Scope

# What stands before the path in the absolute form of a target (RFC 9112, 3.2.2).
_AUTHORITY = re.compile(r"https?://[^/]*", re.IGNORECASE)


def routed(scope: Scope) -> Scope:
    """A copy of `scope` for the router.

    HEAD asks for what GET gives; the server, which keeps the request as it came, sends no body.
    A path with a slash at its end is served: a redirect would name an address that a client
    behind a proxy may not reach, and some clients make a GET of a redirected POST.
    A target in absolute form, as clients send it that take the server for a proxy, is its path.
    """
    path = _AUTHORITY.sub("", scope["path"], count=1) if scope["path"][:1] != "/" else scope["path"]
    return {
        **scope,
        "method": "GET" if scope["method"] == "HEAD" else scope["method"],
        "path": path.rstrip("/") or "/",
    }
