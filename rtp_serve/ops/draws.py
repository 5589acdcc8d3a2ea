"""What sampling takes and gives: plain columns on the host, one entry a row of logits."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NO_TOKEN = -1
"""In the place of a token id, for a row that holds NaN or whose largest logit is not finite."""

MIN_TEMPERATURE = 1e-6
"""Below it, differences between fp32 logits overflow; the most likely token is already certain."""

Logits = NDArray[np.float32]
"""[n, vocab_size]; the elements of a row lie one after the other."""


@dataclass(frozen=True, slots=True)
class Draws:
    """How each row's token is drawn from the weights exp(logit / temperature).

    Filters act in the order of the fields; each keeps or drops tokens of equal logits together.
    """

    # [n], float32: 0 takes the largest logit, the lowest id among equals; else from MIN_TEMPERATURE
    temperature: NDArray[np.float32]
    # [n], float32: keep what weighs at least this times the heaviest; 0 keeps all
    min_p: NDArray[np.float32]
    # [n], int32: keep this many of the heaviest; 0 keeps all
    top_k: NDArray[np.int32]
    # [n], float32: keep the smallest set of the heaviest with this share of the weight that the
    # others left; 1 keeps all
    top_p: NDArray[np.float32]
    # [n], float64, in [0, 1): how far to go through the kept weights, by ascending id
    number: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Log-probabilities of some tokens and of the most likely ones; NaN where there is NO_TOKEN."""

    # [n], float64: of the tokens asked for
    own: NDArray[np.float64]
    # [n], int32: 1 for the largest logit; among equals the lower id comes first
    ranks: NDArray[np.int32]
    # [n, num_top], int32: best first
    top_ids: NDArray[np.int32]
    # [n, num_top], float64
    top: NDArray[np.float64]
