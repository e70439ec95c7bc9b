"""Who is who: the account of each client, by its key or else by its address, in bounded memory."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from time import monotonic

from plimsoll.policy.client_limits import ClientAccount, ClientLimits

# More than keys can be. Beyond, the client that has been silent for longest is forgotten, and with
# it what it took: one that has so many addresses has no need of that.
MOST_CLIENTS = 10_000
MOST_NAME_CHARACTERS = 64
IPV6_CLIENT_BITS = 64  # what one site has for itself


class Clients:
    """Owns the accounts, the one that was asked for longest ago first. Lives on the event loop.

    limits: of a client without limits of its own. clock: seconds that never go back.
    """

    def __init__(
        self, limits: ClientLimits | None = None, clock: Callable[[], float] = monotonic
    ) -> None:
        self.limits = limits or ClientLimits()
        self._clock = clock
        self._accounts: OrderedDict[Hashable, ClientAccount] = OrderedDict()

    def __len__(self) -> int:
        return len(self._accounts)

    def account_of(self, client: Hashable, limits: ClientLimits | None = None) -> ClientAccount:
        """The account of a client, a new one where it is not known.

        limits: its own; None: those of every client.
        """
        account = self._accounts.get(client)
        if account is None:
            self._forget_one()
            account = self._accounts[client] = ClientAccount(self.limits, self._clock)
        self._accounts.move_to_end(client)
        account.keep_to(limits or self.limits)
        return account

    def _forget_one(self) -> None:
        """Where there are too many, forget the one that has been silent for longest."""
        # Those with a request under way are no more than there are connections.
        for _ in range(len(self._accounts)):
            if len(self._accounts) < MOST_CLIENTS:
                return
            client, account = self._accounts.popitem(last=False)
            if account.n_under_way:
                self._accounts[client] = account


@lru_cache(maxsize=4096)
def client_of(address: str | None) -> str:
    """Who counts as one client: an IPv4 address, a /64 of IPv6, or all of a local socket."""
    if address is None:
        return "local"
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:  # a proxy may pass on anything
        return address[:MOST_NAME_CHARACTERS]
    if not isinstance(found, IPv6Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return f"{int(found) >> (128 - IPV6_CLIENT_BITS):x}/{IPV6_CLIENT_BITS}"
