"""Raw runs of `python -m benchmarks.peers --sweep --output RUNS` → a picture of throughput against
concurrency: medians with the range of the repetitions.

python -m benchmarks.plot RUNS docs/throughput.png
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.command import run
from benchmarks.samples import Spread
from benchmarks.workloads import SWEPT, WORKLOADS

LABELS = {
    "rtp-serve": "rtp-serve",
    "vllm": "vLLM CPU",
    "llamacpp": "llama.cpp",
    "llamacpp-flash": "llama.cpp, flash attention",
}
_COLOURS = {
    "rtp-serve": "#c0392b",
    "vllm": "#2c3e50",
    "llamacpp": "#7f8c8d",
    "llamacpp-flash": "#b2babb",
}

Curves = dict[str, dict[int, Spread]]
"""Server → concurrency → output tokens per second."""


def curves(runs: Iterable[dict[str, Any]]) -> Curves:
    """Of the measured bursts that were completed; warm-up runs have a negative repetition."""
    samples: dict[str, dict[int, list[float]]] = {}
    for each in runs:
        is_measured = each["repetition"] >= 0 and "output_tokens_per_s" in each
        if each["workload"] in SWEPT and is_measured:
            concurrency = WORKLOADS[each["workload"]].concurrency
            by_concurrency = samples.setdefault(each["server"], {})
            by_concurrency.setdefault(concurrency, []).append(each["output_tokens_per_s"])
    return {
        server: {number: Spread.of(values) for number, values in sorted(found.items())}
        for server, found in samples.items()
    }


def draw(found: Curves, path: Path, title: str) -> None:
    """Write the picture; its type is the path's suffix."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for server, points in found.items():
        spreads = list(points.values())
        axes.errorbar(
            list(points),
            [spread.median for spread in spreads],
            yerr=[
                [spread.median - spread.low for spread in spreads],
                [spread.high - spread.median for spread in spreads],
            ],
            label=LABELS.get(server, server),
            color=_COLOURS.get(server),
            marker="o",
            capsize=3,
        )
    ticks = sorted({each for points in found.values() for each in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(each) for each in ticks])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("requests at once (512 tokens in, 128 out)")
    axes.set_ylabel("output tokens per second")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main(
    runs: Annotated[Path, typer.Argument(help="JSON lines of a sweep.", exists=True)],
    picture: Annotated[Path, typer.Argument(help="As docs/throughput.png.")],
    title: str = "SmolLM2-135M, bfloat16, 2 threads",
) -> None:
    """Draw throughput against concurrency."""
    lines = runs.read_text(encoding="utf-8").splitlines()
    draw(curves(map(json.loads, lines)), picture, title)


if __name__ == "__main__":
    run(main)
