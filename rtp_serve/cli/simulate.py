"""`rtp-serve simulate`: how a fleet would serve a trace, and how large it must be."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer
from tqdm import tqdm

from rtp_serve.config.parse import parse_config, read_yaml
from rtp_serve.config.simulation import FleetConfig, SimulationConfig
from rtp_serve.errors import ConfigError
from rtp_serve.simulation.engine_model import EngineModel
from rtp_serve.simulation.fit import read_fit
from rtp_serve.simulation.outcome import FleetOutcome, table
from rtp_serve.simulation.planning import (
    PlannedFleet,
    Planner,
    Progress,
    engine_model,
    played_trace,
)
from rtp_serve.simulation.plots import draw
from rtp_serve.simulation.requests import Trace
from rtp_serve.simulation.traces import read_trace

Answer = tuple[str, PlannedFleet | None]
"""A question, and the fleet that answers it, if there is one."""

_PROGRESS_STEP = 500
"""Requests between two looks at the progress line."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be played."""

    settings: SimulationConfig
    trace: Trace
    """The part that is played, paced."""
    model: EngineModel

    @property
    def headline(self) -> str:
        trace = self.trace
        return f"{trace.name}: {len(trace.requests)} requests in {trace.duration_s:.0f} s"


def asked(trace: str, config: str, fit: str | None) -> Asked:
    """By three files. Raises ConfigError."""
    settings = parse_config(SimulationConfig, read_yaml(config), config)
    whole = read_trace(Path(trace))
    model = engine_model(settings, whole.block_size)
    if fit is not None:
        model = _fitted(Path(fit), model)
    return Asked(settings, played_trace(whole, settings), model)


def run_simulate(
    trace: str, config: str, fit: str | None, plots: str | None, as_json: bool
) -> None:
    """Play the fleets of a configuration and print what comes of it. Raises ConfigError."""
    what = asked(trace, config, fit)
    settings, played, model = what.settings, what.trace, what.model
    if not settings.plays_fleets:
        raise ConfigError(f"{config}: has fleets that scale only; play them with --autoscale")
    with _progress_line() as progress:
        planner = Planner(settings, played, model, progress)
        answers = list(_answers(planner, settings))
    rows = planner.outcomes
    paths = draw(rows, Path(plots), played.name) if plots is not None else []
    if as_json:
        typer.echo(json.dumps(_report(rows, answers, model)))
        return
    typer.echo(what.headline)
    typer.echo(table(rows))
    for question, answer in answers:
        found = (
            answer.fleet.name if answer else f"more than {settings.search.max_replicas} of a role"
        )
        typer.echo(f"{question}: {found}")
    for path in paths:
        typer.echo(f"wrote {path}")


def _answers(planner: Planner, config: SimulationConfig) -> Iterator[Answer]:
    for fleet in config.fleets:
        planner.play(fleet)
    if config.sweep_replicas is not None:
        splits = planner.sweep(config.sweep_replicas)
        best = max(splits, key=lambda each: each.goodput_per_s)
        yield f"best split of {config.sweep_replicas} replicas", best
    if config.search.mixed:
        yield "fewest mixed replicas that keep the targets", planner.fewest_mixed()
    if config.search.disaggregated:
        answer = planner.fewest_disaggregated()
        yield "fewest prefill and decode replicas that keep the targets", answer


def _fitted(path: Path, model: EngineModel) -> EngineModel:
    found = read_fit(path, model)
    typer.echo(
        f"{path}: {found.num_prefills} prefills met within {100 * found.prefill_error:.1f} %, "
        f"{found.num_steps} decode steps within {100 * found.step_error:.1f} %",
        err=True,
    )
    return found.model


@contextmanager
def _progress_line() -> Iterator[Progress]:
    """On a terminal only; the line is gone in the end."""
    with tqdm(unit="request", leave=False, disable=None) as bar:

        def show(fleet: FleetConfig, number: int, total: int) -> None:
            if number == 1:
                bar.reset(total)
                bar.set_description(fleet.name)
            if number == total or number % _PROGRESS_STEP == 0:
                bar.update(number - bar.n)

        yield show


def _report(
    rows: tuple[PlannedFleet, ...], answers: list[Answer], model: EngineModel
) -> dict[str, Any]:
    return {
        "engine": asdict(model),
        "fleets": [{**_shape(each), **figures(each)} for each in rows],
        "answers": {question: _shape(answer) if answer else None for question, answer in answers},
    }


def figures(each: FleetOutcome[Any]) -> dict[str, Any]:
    """Of the JSON report."""
    return {
        **(asdict(each.summary) if each.summary else {}),
        "ttft_attainment": each.ttft_attainment,
        "itl_attainment": each.itl_attainment,
        "attainment": each.attainment,
        "goodput_per_s": each.goodput_per_s,
        "replica_hours": each.replica_hours,
        "ideal_hit_rate": each.ideal_hit_rate,
    }


def _shape(each: PlannedFleet) -> dict[str, Any]:
    return each.fleet.model_dump()
