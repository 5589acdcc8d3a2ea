"""What does it cost that ranks compute one model together, and what are experts worth?

    python -m benchmarks.parallel [--json]

| figure | what it is |
|---|---|
| `allreduce_16k_us` | all-reduce of 16 KiB between two processes through shared memory |
| `step_broadcast_us` | a decode step of 32 sequences: from before encoding to decoded elsewhere |
| `tp2_step_overhead_fraction` | a decode step on two ranks ÷ on one with two threads, − 1 |
| `moe_x_transformers` | tokens/s of a mixture of experts ÷ those of transformers |

and the latency of all-reduce by size and backend (`allreduce_BACKEND_SIZE_us`). Each figure's
measurement is a module of its own, which gives it to the report.
"""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks import moe, parallel_collectives, parallel_overhead, parallel_step
from benchmarks.checkpoints import qwen_directory
from benchmarks.command import run
from benchmarks.report import Report

FIGURES = (
    "allreduce_16k_us",
    "step_broadcast_us",
    "tp2_step_overhead_fraction",
    "moe_x_transformers",
)


def main(
    repetitions: int = 5,
    models: Annotated[Path, typer.Option(help="Where the random models are made.")] = Path(
        "build/models"
    ),
    model: Annotated[
        Path | None, typer.Option(help="For the steps of two ranks; default: Qwen3-0.6B's shape.")
    ] = None,
    sparse_model: Annotated[
        Path | None, typer.Option(help="Of experts; default: one of a billion weights.")
    ] = None,
    patience_s: Annotated[
        float, typer.Option(help="Before steps of experts, to wait at most for a quiet machine.")
    ] = 30.0,
    as_json: bool = typer.Option(False, "--json"),
) -> None:
    """Print the figures."""
    report = Report()
    parallel_collectives.measure(report, repetitions)
    parallel_step.measure(report, repetitions)
    models.mkdir(parents=True, exist_ok=True)
    parallel_overhead.measure(report, repetitions, model or qwen_directory(models))
    effort = moe.Effort(repetitions=repetitions, patience_s=patience_s)
    moe.measure(sparse_model or moe.checkpoint(models), effort, report)
    report.show(as_json=as_json)


if __name__ == "__main__":
    run(main)
