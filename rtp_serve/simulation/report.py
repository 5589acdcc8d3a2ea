"""What a replay comes to."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rtp_serve.simulation.served_table import ServedTable


@dataclass(frozen=True, slots=True)
class Summary:
    """Of requests that were served. Seconds; `hit_rate` is cached ÷ prompt tokens."""

    num_requests: int
    num_rejected: int
    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p95_s: float
    ttft_p99_s: float
    itl_p95_s: float
    """Of requests' mean gaps between tokens."""
    hit_rate: float
    cached_tokens: float
    """A request, on average."""


def summarise(served: ServedTable, skip: float = 0.0) -> Summary:
    """Without the first `skip` of requests, which found empty caches. One at least was served."""
    counted = slice(int(skip * len(served)), None)
    done = ~served.is_rejected[counted]
    num_done = int(done.sum())
    assert num_done, "nothing was served"
    ttft = served.ttft_s[counted][done]
    cached = int(served.num_cached_tokens[counted][done].sum())
    p50, p95, p99 = np.percentile(ttft, (50, 95, 99)).tolist()
    return Summary(
        len(done),
        len(done) - num_done,
        float(ttft.mean()),
        p50,
        p95,
        p99,
        float(np.percentile(served.itl_s[counted][done], 95)),
        cached / int(served.num_tokens[counted][done].sum()),
        cached / num_done,
    )


def table(rows: Mapping[str, Summary]) -> str:
    """One line a name; times in milliseconds."""
    width = max(map(len, rows), default=0)
    heads = ("mean", "p50", "p95", "p99", "ITL p95", "hits", "rejected")
    lines = [" " * width + "".join(f"{head:>10}" for head in heads)]
    for name, each in rows.items():
        times = (
            each.ttft_mean_s,
            each.ttft_p50_s,
            each.ttft_p95_s,
            each.ttft_p99_s,
            each.itl_p95_s,
        )
        cells = "".join(f"{1000 * value:10.1f}" for value in times)
        lines.append(f"{name:{width}}{cells}{each.hit_rate:10.3f}{each.num_rejected:10}")
    return "\n".join(lines)
