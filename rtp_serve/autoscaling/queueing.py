"""How long requests wait for one of n servers, and how many servers it takes.

    P(W > t) ≈ C(n, a) · exp(−2 · (n − a) · t / ((Ca² + Cs²) · S))

`a = λ S` is the offered load, `C` Erlang's probability of waiting, `Ca²` and `Cs²` the squared
coefficients of variation of arrivals and service. For M/M/n it is exact; the factor of the mean is
Allen and Cunneen's (A. O. Allen, Probability, Statistics, and Queueing Theory, 1990, ch. 5), the
exponential tail Kingman's heavy-traffic limit; see W. Whitt, Approximations for the GI/G/m queue,
Production and Operations Management 2 (1993).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp


@dataclass(frozen=True, slots=True)
class Traffic:
    """Arrivals and service of one queue."""

    rate: float
    """Requests a second."""

    service_s: float
    """Mean."""

    arrival_cv2: float = 1.0
    """Squared coefficient of variation."""

    service_cv2: float = 1.0

    @property
    def offered(self) -> float:
        """Servers that would be busy, on average, if there were enough."""
        return self.rate * self.service_s


@dataclass(frozen=True, slots=True)
class WaitLimit:
    """Some of the requests may wait so long."""

    share: float
    wait_s: float


def late_share(
    traffic: Traffic, num_servers: int, waits: float, limits: Sequence[WaitLimit]
) -> float:
    """Of requests, those that wait longer than they may. `waits` is C(n, a)."""
    spread = max(1e-9, traffic.arrival_cv2 + traffic.service_cv2)
    pace = 2 * (num_servers - traffic.offered) / (spread * traffic.service_s)
    return waits * sum(each.share * exp(-pace * each.wait_s) for each in limits)


def servers_needed(
    traffic: Traffic, limits: Sequence[WaitLimit], miss: float, most: int
) -> tuple[int, float]:
    """The fewest servers, and no more than `most`, with which at most `miss` of the requests wait
    longer than they may; and the share that does with them."""
    offered = traffic.offered
    if offered <= 0:
        return 0, 0.0
    blocked = 1.0  # Erlang's B by its recursion, from no server on
    late = 1.0
    for num_servers in range(1, most + 1):
        blocked = offered * blocked / (num_servers + offered * blocked)
        if num_servers <= offered:
            continue
        waits = blocked / (1 - offered / num_servers * (1 - blocked))
        late = late_share(traffic, num_servers, waits, limits)
        if late <= miss:
            return num_servers, late
    return most, late
