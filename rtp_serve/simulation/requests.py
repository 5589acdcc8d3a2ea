"""What a trace asks for, and what became of it."""

from dataclasses import dataclass, replace

from rtp_serve.kv_cache.block import BlockHash


@dataclass(frozen=True, slots=True)
class TracedRequest:
    """One request of a trace."""

    arrival_s: float
    num_tokens: int
    """Of the prompt."""
    num_new_tokens: int
    """Of the answer."""
    block_hashes: tuple[BlockHash, ...]
    """Of the prompt's full blocks."""
    priority: int = 50
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests by arrival."""

    name: str
    block_size: int
    requests: tuple[TracedRequest, ...]

    @property
    def duration_s(self) -> float:
        return self.requests[-1].arrival_s - self.requests[0].arrival_s

    def part(self, first: float, last: float) -> "Trace":
        """From one fraction of its requests to another."""
        count = len(self.requests)
        return replace(self, requests=self.requests[int(first * count) : int(last * count)])

    def paced(self, factor: float) -> "Trace":
        """The same requests in `factor` of the time, from 0."""
        start = self.requests[0].arrival_s
        return replace(
            self,
            requests=tuple(
                replace(each, arrival_s=(each.arrival_s - start) * factor) for each in self.requests
            ),
        )


@dataclass(slots=True)
class Served:
    """What became of one request; times are from its arrival."""

    request: TracedRequest
    ttft_s: float = 0.0
    e2e_s: float = 0.0
    num_cached_tokens: int = 0
    is_rejected: bool = False

    @property
    def itl_s(self) -> float:
        """Mean gap between its tokens; 0 of an answer of one."""
        gaps = self.request.num_new_tokens - 1
        return (self.e2e_s - self.ttft_s) / gaps if gaps > 0 else 0.0
