"""How the running sequences are sampled, as arrays by row: no Python per sequence in a step."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtp_serve.ops import sampling as ops
from rtp_serve.ops.draws import MIN_TEMPERATURE, Draws
from rtp_serve.worker.tracked_sequence import TrackedSequence

_SEED_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class RowSampling:
    """How the sequences in some rows are sampled, for as long as the rows are theirs."""

    # [n], int64: rows of the table
    rows: NDArray[np.int64]
    # all take the likeliest token
    is_greedy: bool
    # [n], float32: 0 is greedy
    temperature: NDArray[np.float32]
    # [n], float32
    min_p: NDArray[np.float32]
    # [n], int32
    top_k: NDArray[np.int32]
    # [n], float32
    top_p: NDArray[np.float32]
    # [n], uint64
    seed: NDArray[np.uint64]
    # indices into `rows` where logits may have to be adjusted
    adjusted: tuple[int, ...]
    # indices into `rows` where log-probabilities of the tokens are wanted
    asking: tuple[int, ...]

    @property
    def is_plain_greedy(self) -> bool:
        """The ids of the largest logits are all that is wanted."""
        return self.is_greedy and not self.adjusted and not self.asking

    def draws(self, positions: NDArray[np.int64]) -> Draws:
        """For the tokens at these positions [n]."""
        numbers = ops.uniforms(self.seed, positions)
        return Draws(self.temperature, self.min_p, self.top_k, self.top_p, numbers)


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
        self._has_adjustments = np.zeros(num_rows, np.bool_)
        # bool: log-probabilities of its tokens are wanted
        self._has_logprobs = np.zeros(num_rows, np.bool_)

    def admit(self, row: int, sequence: TrackedSequence) -> None:
        """From now on the row is this sequence's."""
        sampling = sequence.sampling
        temperature = max(sampling.temperature, MIN_TEMPERATURE)
        self._temperature[row] = 0.0 if sampling.is_greedy else temperature
        self._min_p[row] = sampling.min_p
        self._top_k[row] = sampling.top_k
        self._top_p[row] = sampling.top_p
        self._seed[row] = sequence.seed & _SEED_MASK
        self._has_adjustments[row] = sequence.has_adjustments
        self._has_logprobs[row] = sampling.logprobs is not None

    def of(self, rows: NDArray[np.int64]) -> RowSampling:
        """Of the sequences in these rows [n]."""
        temperature = self._temperature[rows]
        return RowSampling(
            rows,
            is_greedy=not temperature.any(),
            temperature=temperature,
            min_p=self._min_p[rows],
            top_k=self._top_k[rows],
            top_p=self._top_p[rows],
            seed=self._seed[rows],
            adjusted=tuple(np.flatnonzero(self._has_adjustments[rows]).tolist()),
            asking=tuple(np.flatnonzero(self._has_logprobs[rows]).tolist()),
        )
