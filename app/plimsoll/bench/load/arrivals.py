"""When requests are due in an open loop: pure arithmetic over a rate."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class Rate:
    """Requests a second, from the first to the last in a straight line over the run."""

    first_per_s: float
    last_per_s: float
    poisson: bool = True  # False: evenly spaced

    @property
    def is_ramp(self) -> bool:
        """Whether it changes."""
        return self.first_per_s != self.last_per_s


def arrivals(rate: Rate, seconds: float, random: Random) -> Iterator[float]:
    """Seconds after the start at which requests are due, below `seconds`, in order.

    After t seconds `first·t + slope·t²/2` requests are due on average; each arrival is that
    function's inverse, at whole numbers or, for a Poisson process, at a sum of exponentials.
    """
    slope = 0.0 if not rate.is_ramp else (rate.last_per_s - rate.first_per_s) / seconds
    n_due = random.expovariate(1.0) if rate.poisson else 0.0
    while True:
        square = rate.first_per_s**2 + 2 * slope * n_due
        if square < 0:  # a falling rate reached zero
            return
        # This form of the root holds for a slope of zero too.
        at_s = 2 * n_due / (rate.first_per_s + math.sqrt(square)) if n_due else 0.0
        if at_s >= seconds:
            return
        yield at_s
        n_due += random.expovariate(1.0) if rate.poisson else 1.0
