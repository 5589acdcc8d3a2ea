"""Pictures of what fleets make of a trace. Matplotlib is asked for when one is drawn."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rtp_serve.errors import ConfigError
from rtp_serve.routing.types import Floats
from rtp_serve.simulation.outcome import FleetOutcome
from rtp_serve.simulation.scaling import ScaledOutcome

_PERCENTILES = ((50, "#9db8d2"), (95, "#3f74a3"), (99, "#c0392b"))
_MAX_CURVES = 6
"""Distributions in one picture; with more fleets, some of them."""

_NUM_PERIODS = 200
"""Of a timeline, in which arrivals are counted."""


def draw(outcomes: Sequence[FleetOutcome[Any]], directory: Path, title: str) -> list[Path]:
    """Write `fleets.png`, percentiles and costs by fleet, and `distributions.png`, of TTFT and ITL.
    Raises ConfigError without matplotlib, or if the directory cannot be written to."""
    shown = [each for each in outcomes if each.summary is not None]
    pyplot = _pyplot()
    return [
        _written(pyplot, drawing(pyplot, shown), directory / f"{name}.png", title)
        for name, drawing in (("fleets", _fleets), ("distributions", _distributions))
    ]


def draw_sizes(
    outcomes: Sequence[ScaledOutcome], arrivals_s: Sequence[float], directory: Path, title: str
) -> Path:
    """Write `timeline.png`: requests a second above, each scaler's replicas below, those that start
    as a thin line. Raises as `draw` does."""
    pyplot = _pyplot()
    height = 2.2 * (len(outcomes) + 1)
    figure, axes = pyplot.subplots(
        len(outcomes) + 1, 1, figsize=(11, height), layout="constrained", sharex=True
    )
    counts, edges = np.histogram(arrivals_s, bins=_NUM_PERIODS)
    axes[0].stairs(counts / np.diff(edges), edges, color="#3f74a3", fill=True)
    axes[0].set_ylabel("requests/s", fontsize=9)
    for axis, each in zip(axes[1:], outcomes, strict=True):
        times, running, target = zip(*each.fleet.sizes, strict=True)
        axis.step(times, target, where="post", linewidth=0.8, color="#c0392b", label="ordered")
        axis.fill_between(times, running, step="post", color="#9db8d2", label="running")
        axis.set_ylim(bottom=0)
        axis.set_ylabel("replicas", fontsize=9)
        kept, hours = 100 * each.attainment, each.replica_hours
        axis.set_title(
            f"{each.fleet.name}: {kept:.1f} % kept, {hours:.2f} replica-hours", fontsize=10
        )
        axis.legend(fontsize=8, loc="upper left")
    axes[-1].set_xlabel("s")
    return _written(pyplot, figure, directory / "timeline.png", title)


def _pyplot() -> Any:
    try:
        import matplotlib as mpl
    except ImportError:
        raise ConfigError("--plots: needs matplotlib (pip install 'rtp-serve[plots]')") from None
    mpl.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _written(pyplot: Any, figure: Any, path: Path, title: str) -> Path:
    figure.suptitle(title)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise ConfigError(f"--plots {path.parent}: {error.strerror}") from error
    finally:
        pyplot.close(figure)
    return path


def _fleets(pyplot: Any, outcomes: Sequence[FleetOutcome[Any]]) -> Any:
    width = max(9.0, 0.45 * len(outcomes) + 3)
    figure, axes = pyplot.subplots(3, 2, figsize=(width, 9.5), layout="constrained")
    places = np.arange(len(outcomes), dtype=np.float64)
    _percentiles(axes[0, 0], places, [each.ttft_s for each in outcomes], "TTFT, s")
    _percentiles(axes[0, 1], places, [each.itl_s for each in outcomes], "ITL, s")
    bars: tuple[tuple[Any, str, Callable[[FleetOutcome[Any]], float]], ...] = (
        (axes[1, 0], "requests that keep the targets, %", lambda each: 100 * each.attainment),
        (axes[1, 1], "goodput, requests/s", lambda each: each.goodput_per_s),
        (axes[2, 0], "replica-hours", lambda each: each.replica_hours),
        (axes[2, 1], "prompt tokens cached, %", _hit_rate),
    )
    for axis, label, value in bars:
        axis.bar(places, [value(each) for each in outcomes], color="#3f74a3")
        axis.set_title(label, fontsize=10)
    ideal = 100 * outcomes[0].ideal_hit_rate if outcomes else 0.0
    axes[2, 1].axhline(ideal, color="#c0392b", label="one cache that forgets nothing")
    axes[2, 1].set_ylim(0, max(1.0, 1.25 * ideal))
    axes[2, 1].legend(fontsize=8, loc="upper left")
    for axis in axes.flat:
        axis.set_xticks(places, [each.fleet.name for each in outcomes], rotation=60, fontsize=8)
        axis.grid(axis="y", alpha=0.3)
    return figure


def _hit_rate(each: FleetOutcome[Any]) -> float:
    return 100 * each.summary.hit_rate if each.summary else 0.0


def _percentiles(axis: Any, places: Floats, samples: Sequence[Floats], label: str) -> None:
    """A colour a percentile; fleets without samples leave a gap."""
    for percentile, colour in _PERCENTILES:
        values = [np.percentile(each, percentile) if len(each) else np.nan for each in samples]
        axis.plot(places, values, "o", markersize=5, color=colour, label=f"p{percentile}")
    axis.set_yscale("log")
    axis.set_title(label, fontsize=10)
    axis.legend(fontsize=8)


def _distributions(pyplot: Any, outcomes: Sequence[FleetOutcome[Any]]) -> Any:
    step = max(1, -(-len(outcomes) // _MAX_CURVES))
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for each in outcomes[::step]:
        for axis, samples in zip(axes, (each.ttft_s, each.itl_s), strict=True):
            if len(samples):
                later = 100 * (1 - np.arange(len(samples)) / len(samples))
                axis.plot(np.sort(samples), later, label=each.fleet.name)
    for axis, label in zip(axes, ("TTFT, s", "mean ITL of a request, s"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel=label, ylabel="requests that take longer, %")
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=8)
    return figure
