"""Which client a request is of, and how many are remembered."""

import pytest

from plimsoll.api.edge import clients as module
from plimsoll.api.edge.clients import MOST_NAME_CHARACTERS, Clients, client_of
from plimsoll.errors import RequestRateError
from plimsoll.policy.client_limits import ClientLimits
from tests.fakes import FakeClock


def test_a_name_that_a_proxy_passes_on_takes_little_room():
    """It may send back what it was sent, and ten thousand of them are kept."""
    assert len(client_of("x" * 60_000)) == MOST_NAME_CHARACTERS


def test_the_table_of_clients_is_bounded(monkeypatch: pytest.MonkeyPatch):
    """Addresses cost an attacker nothing; the one that was silent for longest is forgotten."""
    monkeypatch.setattr(module, "MOST_CLIENTS", 3)
    clients = Clients()
    first, *_ = accounts = [clients.account_of(n) for n in range(3)]
    assert clients.account_of(0) is first

    clients.account_of(3)
    assert len(clients) == 3
    assert clients.account_of(0) is first
    assert clients.account_of(2) is accounts[2]
    assert clients.account_of(1) is not accounts[1]


def test_a_client_with_a_request_under_way_is_not_forgotten(monkeypatch: pytest.MonkeyPatch):
    """Its place among those that wait, and its end, are noted there."""
    monkeypatch.setattr(module, "MOST_CLIENTS", 2)
    clients = Clients()
    busy, idle = clients.account_of("busy"), clients.account_of("idle")
    begun_s = busy.enter()
    for n in range(5):
        clients.account_of(n)

    assert clients.account_of("busy") is busy
    assert clients.account_of("idle") is not idle
    busy.leave(begun_s)
    for n in range(5):
        clients.account_of(n)
    assert clients.account_of("busy") is not busy
    assert len(clients) == 2


def test_each_client_has_its_own_account_and_perhaps_its_own_limits():
    """One that is refused leaves the others alone."""
    clients = Clients(ClientLimits(requests_per_s=1), FakeClock())
    clients.account_of("one").enter()

    with pytest.raises(RequestRateError):
        clients.account_of("one").enter()
    clients.account_of("other").enter()
    clients.account_of("one", ClientLimits()).enter()
