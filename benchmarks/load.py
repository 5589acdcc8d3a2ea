"""What came of a load: the times of every request, and the figures made of them."""

from dataclasses import dataclass
from itertools import chain
from statistics import median
from typing import Protocol

from benchmarks.samples import percentile
from benchmarks.workloads import Workload


@dataclass(frozen=True, slots=True)
class Target:
    """A server, as a client sees it."""

    base_url: str
    """Without `/v1`."""

    model: str


@dataclass(frozen=True, slots=True)
class LoadResult:
    """One run of a workload. Requests that failed are in `errors` and nowhere else."""

    duration_s: float
    """First request sent → last answer complete."""

    ttfts_s: tuple[float, ...]
    gaps_s: tuple[tuple[float, ...], ...]
    """Each request's gaps between chunks."""

    errors: tuple[str, ...] = ()

    def is_complete(self, workload: Workload) -> bool:
        return not self.errors and len(self.ttfts_s) == workload.num_requests


def figures(workload: Workload, result: LoadResult) -> dict[str, float]:
    """Of a complete run. Tokens are those that were asked for, since servers end at no other
    length and do not all count alike."""
    ttft_s = median(result.ttfts_s)
    found = {
        "duration_s": result.duration_s,
        "output_tokens_per_s": workload.total_output_tokens / result.duration_s,
        "prefill_tokens_per_s": workload.prompt_tokens / ttft_s,
        "ttft_ms": ttft_s * 1e3,
        "p95_ttft_ms": percentile(result.ttfts_s, 95) * 1e3,
    }
    gaps_s = list(chain.from_iterable(result.gaps_s))
    if workload.output_tokens > 1 and gaps_s:
        decode_s = median(sum(gaps) for gaps in result.gaps_s)
        found["decode_tokens_per_s"] = (workload.output_tokens - 1) / decode_s
        found["itl_ms"] = median(gaps_s) * 1e3
        found["p95_itl_ms"] = percentile(gaps_s, 95) * 1e3
    return found


class LoadGenerator(Protocol):
    """A client that makes a workload's requests."""

    name: str

    def run(self, target: Target, workload: Workload, seed: int) -> LoadResult:
        """Blocks until every request is answered or has failed. Equal seeds are equal prompts."""
        ...

    def pids(self) -> list[int]:
        """Its processes beside this one."""
        ...

    def close(self) -> None:
        """Release what it holds."""
        ...
