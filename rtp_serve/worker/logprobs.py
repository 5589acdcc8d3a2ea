"""Log-probabilities of the model's own distribution, whatever a request asks of sampling."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rtp_serve.engine.output import Int32Array
from rtp_serve.engine.request import TokenLogprobs
from rtp_serve.ops import sampling


def token_logprobs(
    logits: NDArray[np.float32],
    rows: NDArray[np.int64],
    token_ids: Int32Array,
    num_top: Sequence[int],
) -> list[TokenLogprobs | None]:
    """Of one token in each of the `rows` of logits [*, vocab_size], and of its likeliest tokens.

    `rows`, `token_ids` and `num_top` go together. None for a row without a finite largest logit.
    """
    result = sampling.logprobs(logits, rows, token_ids, max(num_top, default=0))
    entries: list[TokenLogprobs | None] = []
    for i, own in enumerate(result.own.tolist()):
        if own != own:
            entries.append(None)
            continue
        best, values = result.top_ids[i, : num_top[i]], result.top[i, : num_top[i]]
        top = tuple(zip(best.tolist(), values.tolist(), strict=True))
        entries.append(TokenLogprobs(int(token_ids[i]), own, int(result.ranks[i]), top))
    return entries
