"""Whether a client is answered at all, decided from its head alone, before any of its body is read.

The order: a route that is open to everyone asks nothing; then the Host, the Origin, the key, the
key's role, of a request that may change something its Content-Type, and what the client has taken
of its limits.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from fastapi.routing import APIRoute, RouteContext
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from plimsoll import errors
from plimsoll.api.edge.access import (
    Access,
    is_counted,
    needed_by,
    route_of,
    takes_any_content_type,
)
from plimsoll.api.edge.body import IncomingBody
from plimsoll.api.edge.clients import Clients, client_of
from plimsoll.api.edge.keys import Key, Keys
from plimsoll.api.edge.origins import AllowedHosts, AllowedOrigins
from plimsoll.api.edge.refusals import Refusals
from plimsoll.policy.client_limits import ClientAccount
from plimsoll.serving.clients import serving_client

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
# A page of another site cannot send these without its browser asking first, with any content.
ASKED_FIRST_METHODS = ("DELETE",)
# JSON, a value a line.
LINES_SUBTYPES = ("x-ndjson", "jsonl")
# What a page of another origin may read of an answer beside its body.
EXPOSED_HEADERS = (
    "Retry-After", "X-Plimsoll-Degraded", "X-Plimsoll-Fingerprint", "X-Plimsoll-Truncated",
    "X-Request-Id",
)  # fmt: skip
BEARER = "bearer "
KEY_HEADERS = ("x-api-key", "api-key")  # the second is that of Azure's clients
MISSING_KEY = (
    "this server asks for a key: send it in the header Authorization: Bearer KEY, or X-API-Key: KEY"
)
UNKNOWN_KEY = "the key that was sent is none of this server's keys"
NO_ADMIN_KEY = "this route needs a key of the role admin"
# A client's library may add a made-up key to the real one; more are guesses.
MOST_SENT_KEYS = 4


@dataclass(frozen=True, slots=True)
class AccessRules:
    """Which clients are answered.

    keys: None: every client may do everything. metrics_open: /metrics asks for nothing.
    clients: what each has taken; with keys each of them is a client, else each address.
    """

    keys: Keys | None = None
    hosts: AllowedHosts = field(default_factory=AllowedHosts)
    origins: AllowedOrigins = field(default_factory=AllowedOrigins)
    metrics_open: bool = False
    clients: Clients = field(default_factory=Clients)


class Guard:
    """ASGI middleware inside the edge, which logs and counts what is refused here."""

    def __init__(self, app: ASGIApp, refusals: Refusals, rules: AccessRules) -> None:
        self._app = app
        self._refusals = refusals
        self._rules = rules
        self._shared: ASGIApp = self._behind_key
        if rules.origins.listed:
            # It answers the questions that browsers ask ahead of a request, which bring no key.
            self._shared = CORSMiddleware(
                self._behind_key,
                allow_origins=rules.origins.listed,
                allow_methods=("*",),
                allow_headers=("*",),  # clients in browsers send many of their own
                expose_headers=EXPOSED_HEADERS,
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            scope["state"]["asked_route"] = route_of(scope)
        await self._checked(self._check_caller, self._shared, scope, receive, send)

    async def _behind_key(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._checked(self._check_client, self._serve, scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request that has been let in, for its client."""
        account: ClientAccount | None = scope.get("state", {}).get("account")
        if account is None:
            await self._app(scope, receive, send)
            return
        try:
            with serving_client(account):
                await self._app(scope, receive, send)
        finally:
            account.leave(scope["state"]["entered_s"])

    async def _checked(
        self,
        check: Callable[[RouteContext | None, Scope], None],
        app: ASGIApp,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Pass a request on to `app` unless `check` refuses it."""
        if scope["type"] == "http":
            route: RouteContext | None = scope["state"]["asked_route"]
            try:
                check(route, scope)
            except (errors.RequestError, errors.ClientLimitError) as error:
                if route is not None and isinstance(route.original_route, APIRoute):
                    scope["route"] = route.original_route  # as FastAPI notes it, for the metrics
                incoming: IncomingBody = scope["state"]["incoming"]
                incoming.refuse()
                scope["state"]["is_turned_away"] = True
                await self._refusals.answer(error, scope)(scope, receive, send)
                return
        await app(scope, receive, send)

    def _check_caller(self, route: RouteContext | None, scope: Scope) -> None:
        """Raises HostError and OriginError."""
        if needed_by(route) is Access.OPEN:
            return
        headers = Headers(scope=scope)
        host, origin = headers.get("host"), headers.get("origin")
        if host and not self._rules.hosts.allows(host):  # no browser leaves it out
            raise errors.HostError(
                f"this server is not known as {host!r}: call it by its IP address, or let "
                "PLIMSOLL_ALLOWED_HOSTS name it"
            )
        if origin is not None and not self._rules.origins.allows(origin, host):
            raise errors.OriginError(
                f"a page of {origin!r} may not call this server unless PLIMSOLL_CORS_ORIGINS "
                "names that origin"
            )

    def _check_client(self, route: RouteContext | None, scope: Scope) -> None:
        """Let a request in, where that is counted.

        Raises MissingKeyError, InvalidKeyError, AdminKeyError, MediaTypeError and ClientLimitError.
        """
        headers = Headers(scope=scope)
        key = self._check_key(needed_by(route), headers)
        content_type = headers.get("content-type", "")
        needs_json = scope["method"] not in (*SAFE_METHODS, *ASKED_FIRST_METHODS)
        if route is not None and needs_json and not _is_json(content_type):
            if not (takes_any_content_type(route) or _is_json_lines(content_type)):
                raise errors.MediaTypeError(
                    "send JSON with the header Content-Type: application/json, not "
                    f"{content_type!r} (curl: add -H 'Content-Type: application/json')"
                )
            _call_json(scope)
        if is_counted(route):
            account = self._account_of(key, scope)
            scope["state"] |= {"entered_s": account.enter(), "account": account}

    def _account_of(self, key: Key | None, scope: Scope) -> ClientAccount:
        if key is not None:
            return self._rules.clients.account_of(key.digest, key.limits)
        address = scope["client"][0] if scope.get("client") else None
        return self._rules.clients.account_of(client_of(address))

    def _check_key(self, needed: Access, headers: Headers) -> Key | None:
        """The key that a request brings, None where it needs none."""
        keys = self._rules.keys
        if needed is Access.OPEN or keys is None:
            return None
        sent = _sent_keys(headers)
        if not sent:
            raise errors.MissingKeyError(MISSING_KEY)
        if len(sent) > MOST_SENT_KEYS:
            raise errors.InvalidKeyError(f"send one key, not {len(sent)}")
        known = [key for each in sent if (key := keys.find(each)) is not None]
        if not known:
            raise errors.InvalidKeyError(UNKNOWN_KEY)
        best = max(known, key=lambda key: key.access)
        if best.access < needed:
            raise errors.AdminKeyError(NO_ADMIN_KEY)
        return best


def _sent_keys(headers: Headers) -> list[bytes]:
    """Every key in a request's head; a client's library may add a made-up one to the real one."""
    tokens = [
        value[len(BEARER) :]
        for value in headers.getlist("authorization")
        if value.lower().startswith(BEARER)
    ]
    keys = (key for name in KEY_HEADERS for key in headers.getlist(name))
    sent = (key.strip().encode("latin-1") for key in (*tokens, *keys))
    return [key for key in sent if key]


def _call_json(scope: Scope) -> None:
    """Have the framework, which goes by the head, read the body as JSON."""
    others = [header for header in scope["headers"] if header[0] != b"content-type"]
    scope["headers"] = [*others, (b"content-type", b"application/json")]


def _is_json(content_type: str) -> bool:
    kind, subtype = _type_of(content_type)
    return kind == "application" and (subtype == "json" or subtype.endswith("+json"))


def _is_json_lines(content_type: str) -> bool:
    """Whether it says so; where one value is read, a single line is that value."""
    kind, subtype = _type_of(content_type)
    return kind == "application" and subtype in LINES_SUBTYPES


def _type_of(content_type: str) -> tuple[str, str]:
    kind, _, subtype = content_type.partition(";")[0].strip().lower().partition("/")
    return kind, subtype
