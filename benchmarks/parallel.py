"""What does it cost that ranks compute one model together?

    python -m benchmarks.parallel [--json]

| figure | what it is |
|---|---|
| `allreduce_16k_us` | all-reduce of 16 KiB between two processes through shared memory |
| `step_broadcast_us` | a decode step of 32 sequences: from before encoding to decoded elsewhere |

and the latency of all-reduce by size and backend (`allreduce_BACKEND_SIZE_us`). Each figure's
measurement is a module of its own, which gives it to the report.
"""

import typer

from benchmarks import parallel_collectives, parallel_step
from benchmarks.command import run
from benchmarks.report import Report

FIGURES = ("allreduce_16k_us", "step_broadcast_us")

MEASUREMENTS = (parallel_collectives.measure, parallel_step.measure)
"""Called in turn with the report and the number of repetitions."""


def main(repetitions: int = 5, as_json: bool = typer.Option(False, "--json")) -> None:
    """Print the figures."""
    report = Report()
    for measure in MEASUREMENTS:
        measure(report, repetitions)
    report.show(as_json=as_json)


if __name__ == "__main__":
    run(main)
