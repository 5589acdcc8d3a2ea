"""How evenly a model's tokens are spread over its experts, told now and then."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from rtp_serve.engine.output import ExpertLoad

_STEPS = 64
"""Between two reports: reading every layer's counts takes longer than counting them."""


class ExpertMeter:
    """Reads the counts of a model, which go on for ever, as loads of stretches of steps."""

    def __init__(self, counts: Mapping[int, NDArray[np.int64]]) -> None:
        """`counts` are the model's own: by sparse layer, tokens that each expert got."""
        self._counts = counts
        self._told = {layer: count.copy() for layer, count in counts.items()}
        self._num_steps = 0

    def step(self) -> tuple[ExpertLoad, ...]:
        """Count a step; the loads since the last report, if it is time for one."""
        if not self._counts:
            return ()
        self._num_steps += 1
        if self._num_steps % _STEPS:
            return ()
        return tuple(self._load(layer) for layer in self._counts)

    def _load(self, layer: int) -> ExpertLoad:
        now = self._counts[layer].copy()
        fresh = now - self._told[layer]
        self._told[layer] = now
        return ExpertLoad(layer, float(fresh.mean()), int(fresh.max()))
