"""What a route asks of a client: nothing, a key, or a key of the role admin.

A route says so itself, with `needs` above its function; one that says nothing needs a key, and so
does a path that is no route. Both count against the client's limits.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import Any, TypeVar

from fastapi.routing import RouteContext, iter_route_contexts
from starlette.routing import Match
from starlette.types import Scope

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])

_ATTRIBUTE = "needed_access"
_ANY_TYPE = "reads_any_content_type"
_UNCOUNTED = "is_uncounted"


class Access(IntEnum):
    """What a client may do, the least first; each may do what those before it may."""

    OPEN = 0  # look whether the server is there
    EMBED = 1  # ask for vectors, and see how the server is
    ADMIN = 2  # see what happened to the requests of others, and change what the server has


def needs(access: Access, *, is_counted: bool = True) -> Callable[[Endpoint], Endpoint]:
    """Declare what the route of the decorated function asks of a client.

    is_counted: whether its requests count against the client's limits. Those that watch the server
    do not: they have to go on while their client has no room for anything else.
    """

    def declare(endpoint: Endpoint) -> Endpoint:
        setattr(endpoint, _ATTRIBUTE, access)
        setattr(endpoint, _UNCOUNTED, not is_counted)
        return endpoint

    return declare


def needed_by(route: RouteContext | None) -> Access:
    """What a route asks of a client; None: a path that is no route."""
    endpoint = None if route is None else route.endpoint
    declared: Access = getattr(endpoint, _ATTRIBUTE, Access.EMBED)
    return declared


def reads_any_content_type(endpoint: Endpoint) -> Endpoint:
    """Declare that the decorated route reads a body as JSON whatever its Content-Type says.

    Only for a route that changes nothing: a page of another site can send such a body unasked.
    """
    setattr(endpoint, _ANY_TYPE, True)
    return endpoint


def takes_any_content_type(route: RouteContext) -> bool:
    """Whether a route is declared so."""
    return getattr(route.endpoint, _ANY_TYPE, False)


def is_counted(route: RouteContext | None) -> bool:
    """Whether a request to the route counts against its client's limits."""
    endpoint = None if route is None else route.endpoint
    return needed_by(route) is not Access.OPEN and not getattr(endpoint, _UNCOUNTED, False)


def methods_at(scope: Scope) -> set[str]:
    """Every method that the path in `scope` takes."""
    routes = iter_route_contexts(scope["app"].routes)
    fitting = (route for route in routes if route.matches(scope)[0] is not Match.NONE)
    return {method for route in fitting for method in route.methods or ()}


def route_of(scope: Scope) -> RouteContext | None:
    """The route that will answer, found as the router finds it; None where there is none."""
    for route in iter_route_contexts(scope["app"].routes):
        if route.matches(scope)[0] is Match.FULL:
            return route
    return None
