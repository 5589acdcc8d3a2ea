"""Log-probabilities of the model's own distribution, whatever a request asks of sampling."""

import math

import numpy as np

from rtp_serve.engine.request import TokenLogprobs
from rtp_serve.worker.logits import FloatRow


def token_logprobs(logits: FloatRow, token_id: int, num_top: int) -> TokenLogprobs:
    """The token's own figures and those of the `num_top` most likely tokens.

    logits [vocab_size], fp32, finite at the top. Among equal logits the lower id comes first.
    """
    largest = float(logits.max())
    normaliser = largest + math.log(np.exp(logits - logits.max()).sum())
    own = logits[token_id]
    rank = 1 + int((logits > own).sum()) + int((logits[:token_id] == own).sum())
    top = tuple((int(best), float(logits[best]) - normaliser) for best in _top(logits, num_top))
    return TokenLogprobs(token_id, float(own) - normaliser, rank, top)


def _top(logits: FloatRow, count: int) -> list[int]:
    """Ids of the largest `count` logits, best first."""
    if count == 0:
        return []
    count = min(count, len(logits))
    least = np.partition(logits, len(logits) - count)[len(logits) - count]
    ids = np.flatnonzero(logits >= least)
    order = np.lexsort((ids, -logits[ids]))
    return [int(token_id) for token_id in ids[order[:count]]]
