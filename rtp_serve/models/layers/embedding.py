"""Token ids, or embeddings given in their place, → the first hidden state."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rtp_serve import ops


class TokenEmbedding:
    """Rows of the embedding matrix."""

    def __init__(self, weight: ops.PackedWeight) -> None:
        self._weight = weight

    def __call__(
        self,
        token_ids: NDArray[np.int64],
        embeds: Tensor | None = None,
        is_embedded: Tensor | None = None,
    ) -> Tensor:
        """A new tensor [num_tokens, hidden_size].

        token_ids [num_tokens]. embeds [num_tokens, hidden_size] replaces the looked-up rows
        where is_embedded [num_tokens], bool, says so; without it, all of them.
        """
        if embeds is not None and is_embedded is None:
            return embeds.clone()
        looked_up = ops.embedding(token_ids, self._weight)
        if embeds is None or is_embedded is None:
            return looked_up
        return torch.where(is_embedded[:, None], embeds, looked_up)
