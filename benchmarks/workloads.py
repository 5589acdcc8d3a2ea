"""The loads that servers are compared under. Greedy, to a fixed length, fresh prompts each time."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Workload:
    """A number of requests, `concurrency` of them open at a time."""

    name: str
    prompt_tokens: int
    """Without the shared prefix."""

    output_tokens: int
    num_requests: int
    concurrency: int
    prefix_tokens: int = 0
    num_prefixes: int = 0
    """Requests share this many prefixes evenly; 0 is no shared prefix."""

    @property
    def total_output_tokens(self) -> int:
        return self.num_requests * self.output_tokens


def burst(concurrency: int) -> Workload:
    """All at once: 512 tokens in, 128 out each."""
    return Workload(f"c{concurrency}", 512, 128, concurrency, concurrency)


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("single", 512, 128, 3, 1),
        Workload("prefill", 2048, 1, 3, 1),
        *(burst(concurrency) for concurrency in (1, 2, 4, 8, 16)),
        Workload("prefix", 64, 32, 24, 4, prefix_tokens=1024, num_prefixes=3),
        Workload("first", 64, 4, 24, 1),
    )
}
COMPARED = ("single", "prefill", "c8", "c16", "prefix")
SWEPT = ("c1", "c2", "c4", "c8", "c16")
WARM_UP = Workload("warm-up", 128, 8, 2, 2)
