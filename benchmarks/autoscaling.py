"""What is autoscaling by targets worth, against Serve's `target_ongoing_requests`?

    python -m benchmarks.autoscaling [--traces DIR] [--no-real | --no-simulated] [--json]

Simulated: the Azure code trace (an excerpt unless DIR has the whole one) and a generated diurnal
one. Knobs of both, Serve's target and delays among them, are tuned on the first half of each trace:
the fewest replica-hours with which 95 % of requests keep their targets; ours must keep no fewer
than Serve's did there. They are tested on the second half. `replica_hours_ratio` is ours ÷ Serve's,
`slo_attainment_minus_rival` is ours − Serve's; both are those of the worse trace.

Real: `scale_up_s` is the time from the first request of a load that takes three replicas to three
that answer, on a cluster of this machine (`configs/autoscaled.yaml`, which has processes started
ahead); `scale_up_cold_s` is that without them.
"""

from pathlib import Path

import typer

from benchmarks.autoscaling_plays import (
    DIURNAL,
    GRIDS,
    OURS,
    SERVE,
    TESTED,
    TUNED,
    Knobs,
    Outcome,
    Play,
    play_all,
)
from benchmarks.autoscaling_real import scale_up_s
from benchmarks.command import run
from benchmarks.report import Report, say

GOAL = 0.95
_EXCERPTS = Path(__file__).parent / "traces"


def main(
    traces: Path = typer.Option(_EXCERPTS, help="Directory with azure_code_2023.csv."),
    processes: int = typer.Option(2, help="Replays at a time."),
    real: bool = typer.Option(True, help="Scale a real deployment too."),
    simulated: bool = typer.Option(True, help="Replay the traces."),
    repeats: int = typer.Option(3, help="Of each real figure."),
    as_json: bool = typer.Option(False, "--json"),
) -> None:
    """Print replica-hours and attainment against Serve's, and the time of a real scale-up."""
    report = Report()
    if simulated:
        _replay(report, traces, processes)
    if real:
        report.add("scale_up_s", [scale_up_s(num_warm=2) for _ in range(repeats)])
        report.add("scale_up_cold_s", [scale_up_s(num_warm=0) for _ in range(repeats)])
    report.show(as_json=as_json)


def _replay(report: Report, traces: Path, processes: int) -> None:
    """Replica-hours and attainment of both, on the second half of each trace."""
    ratios, differences = [], []
    for trace in (str(traces / "azure_code_2023.csv"), DIURNAL):
        ours, serve = _compared(trace, processes)
        ratios.append(ours.replica_hours / serve.replica_hours)
        differences.append(ours.attainment - serve.attainment)
        name = Path(trace).stem
        report.add(f"replica_hours_ratio_{name}", ratios[-1:])
        report.add(f"slo_attainment_minus_rival_{name}", differences[-1:])
        report.add(f"slo_attainment_{name}", [ours.attainment])
    report.add("replica_hours_ratio", [max(ratios)])
    report.add("slo_attainment_minus_rival", [min(differences)])


def _compared(trace: str, processes: int) -> tuple[Outcome, Outcome]:
    """Ours and Serve's on the second half, each with the knobs of the first."""
    plays = [Play(trace, TUNED, scaler, knobs) for scaler, grid in GRIDS.items() for knobs in grid]
    found = dict(zip(plays, play_all(plays, processes), strict=True))
    serve = chosen({each.knobs: o for each, o in found.items() if each.scaler == SERVE}, GOAL)
    reached = found[Play(trace, TUNED, SERVE, serve)].attainment
    ours = chosen(
        {each.knobs: o for each, o in found.items() if each.scaler == OURS}, max(GOAL, reached)
    )
    tested = [Play(trace, TESTED, OURS, ours), Play(trace, TESTED, SERVE, serve)]
    outcomes = play_all(tested, processes)
    for each, outcome in zip(tested, outcomes, strict=True):
        say(f"{Path(trace).stem}, {each.scaler} {dict(each.knobs)}")
        say(f"  first half {found[Play(trace, TUNED, each.scaler, each.knobs)]}")
        say(f"  second half {outcome}")
    return outcomes[0], outcomes[1]


def chosen(outcomes: dict[Knobs, Outcome], goal: float) -> Knobs:
    """The cheapest that reach the goal; if none does, those that come nearest to it."""
    good = {knobs: each for knobs, each in outcomes.items() if each.attainment >= goal}
    if good:
        return min(good, key=lambda knobs: good[knobs].replica_hours)
    return max(outcomes, key=lambda knobs: outcomes[knobs].attainment)


if __name__ == "__main__":
    run(main)
