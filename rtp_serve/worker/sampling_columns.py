"""How the running sequences are sampled, as arrays by row: no Python per sequence in a step."""

import numpy as np
from numpy.typing import NDArray

from rtp_serve.ops import sampling as ops
from rtp_serve.ops.draws import MIN_TEMPERATURE, Draws
from rtp_serve.worker.tracked_sequence import TrackedSequence

_SEED_MASK = (1 << 64) - 1


class SamplingColumns:
    """Arrays of [num_rows]; what a row holds counts from the `admit` that filled it."""

    def __init__(self, num_rows: int) -> None:
        # float32: 0 is greedy
        self._temperature = np.zeros(num_rows, np.float32)
        self._min_p = np.zeros(num_rows, np.float32)
        self._top_k = np.zeros(num_rows, np.int32)
        self._top_p = np.ones(num_rows, np.float32)
        self._seed = np.zeros(num_rows, np.uint64)
        # bool: the sequence's logits may have to be adjusted
        self.has_adjustments = np.zeros(num_rows, np.bool_)
        # bool: log-probabilities of its tokens are wanted
        self.has_logprobs = np.zeros(num_rows, np.bool_)

    def admit(self, row: int, sequence: TrackedSequence) -> None:
        """From now on the row is this sequence's."""
        sampling = sequence.sampling
        temperature = max(sampling.temperature, MIN_TEMPERATURE)
        self._temperature[row] = 0.0 if sampling.is_greedy else temperature
        self._min_p[row] = sampling.min_p
        self._top_k[row] = sampling.top_k
        self._top_p[row] = sampling.top_p
        self._seed[row] = sequence.seed & _SEED_MASK
        self.has_adjustments[row] = sequence.has_adjustments
        self.has_logprobs[row] = sampling.logprobs is not None

    def draws(self, rows: NDArray[np.int64], positions: NDArray[np.integer]) -> Draws | None:
        """For the tokens at these positions, both [n]; None if all rows are greedy."""
        temperature = self._temperature[rows]
        if not temperature.any():
            return None
        return Draws(
            temperature,
            self._min_p[rows],
            self._top_k[rows],
            self._top_p[rows],
            ops.uniforms(self._seed[rows], positions.astype(np.int64)),
        )
