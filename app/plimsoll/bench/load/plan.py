"""What a load test is to do."""

import ipaddress
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import urlsplit

from plimsoll.bench.load.arrivals import Rate
from plimsoll.bench.load.bodies import KINDS, SHORT, kind_of

DAY_S = 86_400
HUGE_TOKENS = 8192
MOST_IN_FLIGHT = 512
MOST = (1 << 53) - 1  # that a report in JSON can hold


class PlanError(Exception):
    """A plan that cannot or must not be run."""


@dataclass(frozen=True)
class LoadPlan:
    """One run: against what, with which requests, how fast and how long.

    Either `n_clients` (closed loop: each sends when its last request is answered) or `rate`
    (open loop: requests are due whether or not earlier ones are answered). It ends at `seconds`
    or after `n_requests`, whichever is first. Raises PlanError.
    """

    url: str
    mix: Mapping[str, float] = field(default_factory=lambda: {SHORT: 1.0})  # kind → weight
    n_clients: int | None = None
    rate: Rate | None = None
    seconds: float | None = None
    n_requests: int | None = None
    texts: Sequence[str] = ()  # drawn from; empty: made up
    huge_tokens: int = HUGE_TOKENS
    fresh: bool = False  # no body is sent twice, but for the shared ones and samples
    n_verified: int = 0  # texts whose vectors under load must be those of the quiet server
    exact: bool = False  # bit by bit
    honour_retry_after: bool = False  # of closed-loop clients
    timeout_s: float = 60.0  # counted from when the request was due
    max_in_flight: int = MOST_IN_FLIGHT  # of an open loop
    headers: Mapping[str, str] = field(default_factory=dict)
    allow_remote: bool = False
    seed: int = 7

    def __post_init__(self) -> None:
        _check_target(self.url, allow_remote=self.allow_remote)
        if (self.n_clients is None) == (self.rate is None):
            raise PlanError("choose one: a number of clients, or a rate")
        if self.seconds is None and self.n_requests is None:
            raise PlanError("a run needs an end: seconds, or a number of requests")
        if self.seconds is not None and not 0 < self.seconds <= DAY_S:
            raise PlanError(f"seconds must be above 0 and at most {DAY_S}, not {self.seconds}")
        for name in ("n_clients", "n_requests", "max_in_flight", "huge_tokens"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= MOST:
                raise PlanError(f"{name} must be at least 1 and at most {MOST}, not {value}")
        if not 0 <= self.n_verified <= MOST:
            raise PlanError(f"n_verified must be from 0 to {MOST}, not {self.n_verified}")
        if abs(self.seed) > MOST:
            raise PlanError(f"seed must be from -{MOST} to {MOST}, not {self.seed}")
        if not 0 < self.timeout_s <= DAY_S:
            raise PlanError(f"timeout_s must be above 0 and at most {DAY_S}, not {self.timeout_s}")
        if self.rate is not None:
            self._check_rate(self.rate)
        if unknown := [kind for kind in self.mix if kind_of(kind) is None]:
            known = ", ".join([*KINDS, "list with a number, such as list500"])
            raise PlanError(f"no kind {', '.join(unknown)}; there are {known}")
        if not self.mix or not all(0 < weight < math.inf for weight in self.mix.values()):
            raise PlanError("the mix needs a kind, and every weight must be above 0")
        if self.n_verified and SHORT not in self.mix:
            raise PlanError(f"verified are requests of the kind {SHORT}; the mix has none")

    def _check_rate(self, rate: Rate) -> None:
        lowest, highest = sorted((rate.first_per_s, rate.last_per_s))
        if not 0 <= lowest <= highest < math.inf or highest == 0:
            raise PlanError("a rate must be above 0; a ramp may begin or end at 0")
        if rate.is_ramp and self.seconds is None:
            raise PlanError("a ramp needs seconds to rise in")

    def as_dict(self) -> dict[str, Any]:
        """For JSON: without texts, which are long, and headers, which may hold a key."""
        shown: dict[str, Any] = {
            one.name: getattr(self, one.name)
            for one in fields(self)
            if one.name not in ("texts", "headers", "rate")
        }
        rate = self.rate
        return shown | {
            "mix": dict(self.mix),
            "n_texts": len(self.texts),
            "rate": rate and {one.name: getattr(rate, one.name) for one in fields(rate)},
        }


def parse_mix(text: str) -> dict[str, float]:
    """`short=60,long=10` as kinds and weights; a weight of 0 leaves the kind out.

    Raises PlanError.
    """
    mix: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.partition("=")
        try:
            mix[name.strip()] = float(weight or 1)
        except ValueError:
            raise PlanError(f"{part!r} is not a kind and its weight, such as short=60") from None
    return {name: weight for name, weight in mix.items() if weight}


def _check_target(url: str, *, allow_remote: bool) -> None:
    """Refuse another machine, unless the operator says that it is meant."""
    try:
        parts = urlsplit(url)
        host = parts.hostname if parts.scheme == "http" and parts.port != 0 else None
    except ValueError:  # half an IPv6 address, or a port that is no number
        host = None
    if not host:
        raise PlanError(f"the target must be http://HOST:PORT, not {url!r}")
    if not allow_remote and not _is_loopback(host):
        raise PlanError(f"{host} is not this machine; --allow-remote if it is meant")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
