"""Which peers are asked no more for a while, because they failed too often lately.

    CLOSED      asked freely; each failure counts 1, and what counted halves every `half_life_s`
    OPEN        from `max_failures` on: not asked
    HALF_OPEN   the count has halved once: one request may try. If it succeeds, CLOSED with nothing
                counted; if it fails, OPEN as at first; if it says nothing, the next
                one may try after `probe_s`

Nothing is sticky: a peer that nobody hears of is forgotten by and by.
"""

from dataclasses import dataclass
from enum import Enum

_FORGOTTEN = 0.01
"""A count so small is none."""


class Circuit(Enum):
    """See the module."""

    CLOSED = 1
    OPEN = 2
    HALF_OPEN = 3


@dataclass(frozen=True, slots=True)
class BreakerLimits:
    max_failures: float = 3.0
    half_life_s: float = 5.0
    probe_s: float = 10.0


@dataclass(slots=True)
class _Peer:
    count: float
    at_s: float
    """When the count was that."""

    is_tripped: bool = False
    probe_end_s: float | None = None


class Breaker:
    """Of all peers of one replica, by name. For one thread."""

    def __init__(self, limits: BreakerLimits) -> None:
        self._limits = limits
        self._peers: dict[str, _Peer] = {}

    def circuit(self, name: str, now_s: float) -> Circuit:
        peer = self._peers.get(name)
        if peer is None or not peer.is_tripped:
            return Circuit.CLOSED
        if self._count(peer, now_s) > self._limits.max_failures / 2:
            return Circuit.OPEN
        is_probing = peer.probe_end_s is not None and now_s < peer.probe_end_s
        return Circuit.OPEN if is_probing else Circuit.HALF_OPEN

    def may_try(self, name: str, now_s: float) -> bool:
        """Whether this one may be asked; whoever is told so asks, and tells what came of it."""
        circuit = self.circuit(name, now_s)
        if circuit is Circuit.HALF_OPEN:
            self._peers[name].probe_end_s = now_s + self._limits.probe_s
        return circuit is not Circuit.OPEN

    def succeeded(self, name: str) -> None:
        self._peers.pop(name, None)

    def failed(self, name: str, now_s: float) -> None:
        self._forget(now_s)
        peer = self._peers.setdefault(name, _Peer(0.0, now_s))
        peer.count = self._count(peer, now_s) + 1
        peer.at_s = now_s
        peer.probe_end_s = None
        if peer.is_tripped or peer.count >= self._limits.max_failures:
            peer.is_tripped = True
            peer.count = self._limits.max_failures  # however many fail at once

    def __len__(self) -> int:
        """Peers that are remembered."""
        return len(self._peers)

    def _count(self, peer: _Peer, now_s: float) -> float:
        halvings = (now_s - peer.at_s) / self._limits.half_life_s
        return peer.count * float(0.5**halvings)

    def _forget(self, now_s: float) -> None:
        counts = {name: self._count(peer, now_s) for name, peer in self._peers.items()}
        for name in [name for name, count in counts.items() if count < _FORGOTTEN]:
            del self._peers[name]
