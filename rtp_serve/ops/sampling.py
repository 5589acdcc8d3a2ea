"""Logits on the host → token ids and log-probabilities, compiled or in numpy (see `dispatch`).

With the compiled kernels, what becomes of a row is a function of that row, its parameters and its
number alone, bit for bit. Both implementations keep and weigh the same tokens up to rounding.
"""

from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from rtp_serve.ops import sampling_reference
from rtp_serve.ops.dispatch import compiled_ops
from rtp_serve.ops.draws import Draws, Logits, Logprobs


def greedy(logits: Logits) -> NDArray[np.int32]:
    """[n]: the id of each row's largest logit, the lowest among equals, or NO_TOKEN."""
    token_ids: NDArray[np.int32] = _implementation().greedy(logits)
    return token_ids


def sample(logits: Logits, draws: Draws) -> NDArray[np.int32]:
    """[n]: a token id for each row, or NO_TOKEN."""
    token_ids: NDArray[np.int32] = _implementation().sample(logits, draws)
    return token_ids


def logprobs(
    logits: Logits, rows: NDArray[np.int64], token_ids: NDArray[np.int32], num_top: int
) -> Logprobs:
    """Of token_ids [n] in the rows [n] of the logits, and of each such row's `num_top` likeliest.

    A vocabulary smaller than `num_top` gives as many columns as it has tokens.
    """
    result: Logprobs = _implementation().logprobs(logits, rows, token_ids, num_top)
    return result


def uniforms(seeds: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """[n], float64 in [0, 1) with 53 random bits: one for each (seed, position).

    There is no state and no rounding: it does not matter in which batch, on which replica or how
    often a position is sampled. A position is the token's index in prompt plus output.
    """
    numbers: NDArray[np.float64] = _implementation().uniforms(seeds, positions)
    return numbers


def _implementation() -> ModuleType:
    return compiled_ops() or sampling_reference
