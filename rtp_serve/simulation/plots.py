"""Pictures of what fleets make of a trace. Matplotlib is asked for when one is drawn."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rtp_serve.errors import ConfigError
from rtp_serve.routing.types import Floats
from rtp_serve.simulation.outcome import FleetOutcome

_PERCENTILES = ((50, "#9db8d2"), (95, "#3f74a3"), (99, "#c0392b"))
_MAX_CURVES = 6
"""Distributions in one picture; with more fleets, some of them."""


def draw(outcomes: Sequence[FleetOutcome], directory: Path, title: str) -> list[Path]:
    """Write `fleets.png`, percentiles and costs by fleet, and `distributions.png`, of TTFT and ITL.
    Raises ConfigError without matplotlib, or if the directory cannot be written to."""
    shown = [each for each in outcomes if each.summary is not None]
    try:
        import matplotlib as mpl
    except ImportError:
        raise ConfigError("--plots: needs matplotlib (pip install 'rtp-serve[plots]')") from None
    mpl.use("Agg")
    from matplotlib import pyplot

    paths = []
    for name, drawing in (("fleets", _fleets), ("distributions", _distributions)):
        figure = drawing(pyplot, shown)
        figure.suptitle(title)
        paths.append(directory / f"{name}.png")
        try:
            directory.mkdir(parents=True, exist_ok=True)
            figure.savefig(paths[-1], dpi=110)
        except OSError as error:
            raise ConfigError(f"--plots {directory}: {error.strerror}") from error
        finally:
            pyplot.close(figure)
    return paths


def _fleets(pyplot: Any, outcomes: Sequence[FleetOutcome]) -> Any:
    width = max(9.0, 0.45 * len(outcomes) + 3)
    figure, axes = pyplot.subplots(3, 2, figsize=(width, 9.5), layout="constrained")
    places = np.arange(len(outcomes), dtype=np.float64)
    _percentiles(axes[0, 0], places, [each.ttft_s for each in outcomes], "TTFT, s")
    _percentiles(axes[0, 1], places, [each.itl_s for each in outcomes], "ITL, s")
    bars: tuple[tuple[Any, str, Callable[[FleetOutcome], float]], ...] = (
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


def _hit_rate(each: FleetOutcome) -> float:
    return 100 * each.summary.hit_rate if each.summary else 0.0


def _percentiles(axis: Any, places: Floats, samples: Sequence[Floats], label: str) -> None:
    """A colour a percentile; fleets without samples leave a gap."""
    for percentile, colour in _PERCENTILES:
        values = [np.percentile(each, percentile) if len(each) else np.nan for each in samples]
        axis.plot(places, values, "o", markersize=5, color=colour, label=f"p{percentile}")
    axis.set_yscale("log")
    axis.set_title(label, fontsize=10)
    axis.legend(fontsize=8)


def _distributions(pyplot: Any, outcomes: Sequence[FleetOutcome]) -> Any:
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
