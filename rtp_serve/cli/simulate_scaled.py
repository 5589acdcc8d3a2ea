"""`rtp-serve simulate --autoscale`: how many replicas scalers would have, and what that serves."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from rtp_serve.cli.simulate import asked, figures
from rtp_serve.simulation.outcome import table
from rtp_serve.simulation.plots import draw, draw_sizes
from rtp_serve.simulation.scaling import ScaledOutcome, play_scaled


def run_simulate_scaled(
    trace: str, config: str, fit: str | None, plots: str | None, as_json: bool
) -> None:
    """Play the scalers of a configuration and print what comes of it. Raises ConfigError."""
    what = asked(trace, config, fit)
    rows = play_scaled(what.settings, what.trace, what.model)
    paths = []
    if plots is not None:
        directory, title = Path(plots), what.trace.name
        arrivals = [each.arrival_s for each in what.trace.requests]
        paths = [*draw(rows, directory, title), draw_sizes(rows, arrivals, directory, title)]
    if as_json:
        report = {"engine": asdict(what.model), "scalers": [_row(each) for each in rows]}
        typer.echo(json.dumps(report))
        return
    typer.echo(what.headline)
    typer.echo(table(rows))
    for each in rows:
        fleet = each.fleet
        typer.echo(f"{fleet.name}: {fleet.most} replicas at most, {fleet.num_changes} changes")
    for path in paths:
        typer.echo(f"wrote {path}")


def _row(each: ScaledOutcome) -> dict[str, Any]:
    fleet = each.fleet
    return {
        "name": fleet.name,
        "most_replicas": fleet.most,
        "sizes": fleet.sizes,
        "changes": [
            {"time_s": time_s, "num_replicas": made.num_replicas, "reason": made.reason}
            for time_s, made in fleet.changes
        ],
        **figures(each),
    }
