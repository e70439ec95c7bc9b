"""Hosts and origins: what a browser says of the page behind a request."""

import pytest

from plimsoll.api.edge.origins import AllowedHosts, AllowedOrigins, is_loopback
from plimsoll.errors import SettingsError

LOCAL = [
    "localhost", "localhost:8080", "LOCALHOST", "localhost.", "app.localhost:1", "127.0.0.1",
    "127.0.0.1:8080", "[::1]", "[::1]:8080", "192.168.1.7:80", "[fe80::1]:8080", "10.0.0.1:",
]  # fmt: skip
REBOUND = [
    "evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.nip.io",
    "notlocalhost", "plimsoll", "evil.example.", "[evil]", "127.0.0.1@evil.example", "a b", "::1",
    "localhost:80:80", "2130706433", "127.0.0.1:evil", "",
]  # fmt: skip


@pytest.mark.parametrize("host", LOCAL)
def test_addresses_and_local_names_need_no_setting(host: str):
    """A site can let a name of its own point here; it cannot have one of these."""
    assert AllowedHosts().allows(host)


@pytest.mark.parametrize("host", REBOUND)
def test_any_other_name_is_refused_until_it_is_listed(host: str):
    """It may be a page of another site that has let its own name point to this machine."""
    assert not AllowedHosts().allows(host)
    assert AllowedHosts(["*"]).allows(host)


def test_listed_names_are_allowed_whatever_their_case_and_port():
    """A star stands for every name below, not for the name itself."""
    hosts = AllowedHosts(["plimsoll", " Embed.Example.org ", "*.example.com", "10.0.0.1"])

    for host in (
        "plimsoll:8080",
        "PLIMSOLL",
        "embed.example.org",
        "a.example.com",
        "a.b.example.com:1",
    ):
        assert hosts.allows(host)
    for host in (
        "example.com",
        "evilexample.com",
        "example.org",
        "x.plimsoll",
        "a.example.com.evil",
    ):
        assert not hosts.allows(host)


@pytest.mark.parametrize(
    "pattern", ["", "example.org:80", "https://example.org", "a.*", "**", "a b"]
)
def test_a_pattern_that_could_fit_no_name_is_a_mistake(pattern: str):
    """Found at the start, not when clients are refused."""
    with pytest.raises(SettingsError, match="PLIMSOLL_ALLOWED_HOSTS"):
        AllowedHosts([pattern])


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://localhost:8080", "localhost:8080"),
        ("http://127.0.0.1", "127.0.0.1"),
        ("http://127.0.0.1", "127.0.0.1:80"),
        ("https://embed.example.org", "embed.example.org"),  # a proxy that ends TLS
        ("https://embed.example.org", "Embed.example.org:443"),
        ("http://[::1]:8080", "[::1]:8080"),
    ],
)
def test_the_servers_own_pages_may_call_it(origin: str, host: str):
    """Its status page asks for vectors, and a browser sends the origin with that."""
    assert AllowedOrigins().allows(origin, host)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("null", "localhost:8080"),  # a file, or a frame in a sandbox
        ("", "localhost:8080"),
        ("http://evil.example", "localhost:8080"),
        ("http://localhost:3000", "localhost:8080"),
        ("http://localhost", "localhost:8080"),
        ("http://127.0.0.1:8080", "localhost:8080"),
        ("http://localhost:443", "localhost"),
        ("chrome-extension://localhost:8080", "localhost:8080"),
        ("http://localhost:8080", None),
    ],
)
def test_any_other_page_may_not(origin: str, host: str | None):
    """Any site that its reader opens could use the server otherwise."""
    assert not AllowedOrigins().allows(origin, host)


def test_listed_origins_may_call():
    """Exactly those: another scheme or port is another origin."""
    origins = AllowedOrigins([" https://App.example.org", "http://localhost:3000"])

    assert origins.allows("https://app.example.org", "x")
    assert origins.allows("http://localhost:3000", "x")
    for other in ("http://app.example.org", "https://app.example.org:444", "null", "https://b.org"):
        assert not origins.allows(other, "x")
    assert AllowedOrigins(["*"]).allows("https://anything.example", "x")


@pytest.mark.parametrize("origin", ["", "null", "example.org", "https://a.org/", "https://*.a.org"])
def test_an_origin_that_no_browser_sends_is_a_mistake(origin: str):
    """It would never match, and the page's author would not see why."""
    with pytest.raises(SettingsError, match="PLIMSOLL_CORS_ORIGINS"):
        AllowedOrigins([origin])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True),
        ("0.0.0.0", False), ("::", False), ("192.168.0.1", False), ("example.org", False),
        ("localhost.example.org", False), ("127.1", False),
    ],
)  # fmt: skip
def test_loopback_is_this_machine_alone(name: str, expected: bool):
    """What listens there without keys is not reached from elsewhere."""
    assert is_loopback(name) == expected
