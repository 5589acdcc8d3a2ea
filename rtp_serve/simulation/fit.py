"""An engine's curves from its measurements.

    python -m benchmarks.engine --curves --json > engine.json

gives the times of prefills of several lengths (`prefill_s_n…`) and of decode steps of several
batches at several contexts (`decode_step_s_b…_c…`). Curves are fitted by least squares on relative
errors; a term that would be negative is left out.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rtp_serve.errors import ConfigError
from rtp_serve.routing.types import Floats
from rtp_serve.simulation.engine_model import EngineModel

_PREFILL = re.compile(r"prefill_s_n(\d+)")
_DECODE = re.compile(r"decode_step_s_b(\d+)_c(\d+)")
_NUM_TERMS = 3


@dataclass(frozen=True, slots=True)
class Fitted:
    """A model, and how far it is from what was measured."""

    model: EngineModel
    num_prefills: int
    prefill_error: float
    """The largest of all points, relative."""
    num_steps: int
    step_error: float


def read_fit(path: Path, model: EngineModel) -> Fitted:
    """`model` with the times of a measured engine. Raises ConfigError if the file is no report of
    the benchmark, or has too few points."""
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))["figures"]
        return fitted({name: float(value) for name, value in figures.items()}, model)
    except OSError as error:
        raise ConfigError(f"--fit {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"--fit {path}: not what `python -m benchmarks.engine --json` prints "
            f"({type(error).__name__}: {error})"
        ) from error
    except ConfigError as error:
        raise ConfigError(f"--fit {path}: {error}") from error


def fitted(figures: Mapping[str, float], model: EngineModel) -> Fitted:
    """Raises ConfigError if there are too few points."""
    prefills = _points(_PREFILL, figures)
    steps = _points(_DECODE, figures)
    new = np.array([numbers[0] for numbers, _ in prefills], np.float64)
    prefill = np.stack((np.ones_like(new), new, new * new / 2), axis=1)
    batch = np.array([numbers[0] for numbers, _ in steps], np.float64)
    context = np.array([numbers[-1] for numbers, _ in steps], np.float64)
    step = np.stack((np.ones_like(batch), batch, batch * context), axis=1)
    _check("prefill_s_n…", "lengths", prefill)
    _check("decode_step_s_b…_c…", "batches and contexts", step)
    prefill_terms, prefill_error = _least_squares(prefill, np.array([s for _, s in prefills]))
    step_terms, step_error = _least_squares(step, np.array([s for _, s in steps]))
    curves: dict[str, Any] = dict(
        zip(
            ("prefill_base_s", "prefill_token_s", "prefill_attention_s"),
            prefill_terms,
            strict=True,
        )
    ) | dict(zip(("step_s", "step_sequence_s", "step_kv_token_s"), step_terms, strict=True))
    curves["step_s"] = max(curves["step_s"], 1e-6)  # an engine without sequences steps too
    return Fitted(replace(model, **curves), len(new), prefill_error, len(batch), step_error)


def _points(
    pattern: re.Pattern[str], figures: Mapping[str, float]
) -> list[tuple[tuple[int, ...], float]]:
    found = ((pattern.fullmatch(name), value) for name, value in figures.items())
    return [(tuple(map(int, match.groups())), value) for match, value in found if match]


def _check(names: str, what: str, terms: Floats) -> None:
    rank = int(np.linalg.matrix_rank(terms / terms.max(axis=0))) if len(terms) else 0
    if rank < _NUM_TERMS:
        raise ConfigError(
            f"figures {names}: {len(terms)} points do not tell the {_NUM_TERMS} terms of a curve "
            f"apart; measure more {what} (`python -m benchmarks.engine --curves`)"
        )


def _least_squares(terms: Floats, seconds: Floats) -> tuple[list[float], float]:
    """Coefficients, none below zero, and the largest relative error."""
    relative = terms / seconds[:, None]
    scale = relative.max(axis=0)
    active = np.ones(terms.shape[1], np.bool_)
    found = np.zeros(terms.shape[1])
    while active.any():
        columns = relative[:, active] / scale[active]
        solved = np.linalg.lstsq(columns, np.ones(len(seconds)), rcond=None)[0]
        found[:] = 0.0
        found[active] = solved / scale[active]
        if (solved >= 0).all():
            break
        active[np.flatnonzero(active)[solved.argmin()]] = False
    error = float(np.abs(relative @ found - 1).max())
    return found.tolist(), error
