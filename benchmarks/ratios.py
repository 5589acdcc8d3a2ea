"""Ours over theirs: which figure of which workload becomes which ratio. Pure arithmetic."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from benchmarks.interleave import Measured
from benchmarks.samples import paired_ratios

MeasuredOf = Callable[[str, str], Measured]
"""(server, workload) → what was measured."""

US = "rtp-serve"

LLAMACPP, LLAMACPP_FLASH = "llamacpp", "llamacpp-flash"

VARIANTS = {LLAMACPP: (LLAMACPP, LLAMACPP_FLASH)}
"""Peers that run with more than one setting: the better one of each repetition counts."""

RATIOS = {
    "decode": ("single", "decode_tokens_per_s"),
    "prefill": ("prefill", "prefill_tokens_per_s"),
    "c8": ("c8", "output_tokens_per_s"),
    "c16": ("c16", "output_tokens_per_s"),
    "c16_p95_ttft": ("c16", "p95_ttft_ms"),
    "c16_p95_itl": ("c16", "p95_itl_ms"),
    "prefix": ("prefix", "output_tokens_per_s"),
}
"""Ratio → workload, and the figure of it that is divided."""

PROMISED = (
    "decode_x_vllm",
    "decode_x_llamacpp",
    "prefill_x_vllm",
    "prefill_x_llamacpp",
    "c8_x_vllm",
    "c16_x_vllm",
    "c16_x_llamacpp",
    "c16_p95_ttft_x_vllm",
    "c16_p95_itl_x_vllm",
    "prefix_x_vllm",
    "prefix_x_llamacpp",
    "pss_x_vllm",
)
"""Of these `docs/benchmarks.md` says what they should be; the others stand beside them."""


def ratios(measured: MeasuredOf, peer: str) -> Iterator[tuple[str, list[float]]]:
    """(`NAME_x_PEER`, one ratio for each repetition that both completed)."""
    for name, (workload, figure) in RATIOS.items():
        ours = measured(US, workload).get(figure, {})
        theirs = [measured(server, workload).get(figure, {}) for server in variants(peer)]
        yield f"{name}_x_{peer}", paired_ratios(ours, best(theirs, is_time=figure.endswith("_ms")))


def variants(peer: str) -> tuple[str, ...]:
    """The servers that a peer runs as."""
    return VARIANTS.get(peer, (peer,))


def best(samples: Sequence[Mapping[int, float]], *, is_time: bool) -> dict[int, float]:
    """Of each repetition the best sample that there is."""
    numbers = {number for each in samples for number in each}
    choose = min if is_time else max
    return {
        number: choose(each[number] for each in samples if number in each) for number in numbers
    }


def memory_ratio(measured: MeasuredOf, peer: str, workloads: tuple[str, ...]) -> list[float]:
    """Our largest memory beyond the KV budget over the peer's smallest, after any run: a peer's
    grows by prompts that it keeps, which is none of its fault."""
    ours, theirs = (
        [
            value
            for workload in workloads
            for value in measured(server, workload).get("beyond_kv_bytes", {}).values()
        ]
        for server in (US, peer)
    )
    return [max(ours) / min(theirs)] if ours and theirs else []
