"""The client that the calling code works for, where it works for one.

A context variable: the tasks of a request carry it on. Migrations and links run in contexts of
their own, and work for no client.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from plimsoll.policy.client_limits import ClientAccount

_current: ContextVar[ClientAccount | None] = ContextVar("current_client", default=None)


def current_client() -> ClientAccount | None:
    """The client's account."""
    return _current.get()


@contextmanager
def serving_client(account: ClientAccount) -> Iterator[None]:
    """Work for a client for the length of a `with` block."""
    before = _current.set(account)
    try:
        yield
    finally:
        _current.reset(before)


def charge_client(n_tokens: int) -> None:
    """Count tokens that are going to run for the client, if it is one's."""
    if (account := _current.get()) is not None:
        account.charge(n_tokens)
