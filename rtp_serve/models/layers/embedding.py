"""Token ids, or embeddings given in their place, → the first hidden state."""

import numpy as np
import torch
from numpy.typing import NDArray

from rtp_serve import ops
from rtp_serve.models.rank import Rank
from rtp_serve.ops.tensor import Tensor


class TokenEmbedding:
    """Rows of the embedding matrix, of which each rank has some."""

    def __init__(self, weight: ops.PackedWeight, rank: Rank) -> None:
        self._weight = weight
        self._rank = rank

    @property
    def weight(self) -> ops.PackedWeight | None:
        """None where other ranks have some of its rows."""
        return self._weight if self._rank.is_alone else None

    def __call__(
        self,
        token_ids: NDArray[np.int64],
        embeds: Tensor | None = None,
        is_embedded: Tensor | None = None,
    ) -> ops.Array:
        """A new array [num_tokens, hidden_size].

        token_ids [num_tokens]. embeds [num_tokens, hidden_size] replaces the looked-up rows
        where is_embedded [num_tokens], bool, says so; without it, all of them.
        """
        if embeds is not None and is_embedded is None:
            return embeds.clone()
        looked_up = self._look_up(token_ids)
        if embeds is None or is_embedded is None:
            return looked_up
        return torch.where(is_embedded[:, None], embeds, ops.as_tensor(looked_up))

    def _look_up(self, token_ids: NDArray[np.int64]) -> ops.Array:
        """Each row is of the one rank that has it: the others add zeros, which is exact."""
        if self._rank.is_alone:
            return ops.embedding(token_ids, self._weight)
        begin, end = self._rank.part.vocab
        is_elsewhere = (token_ids < begin) | (token_ids >= end)
        own_ids = np.where(is_elsewhere, 0, token_ids - begin)
        rows = ops.as_tensor(ops.embedding(own_ids, self._weight))
        rows[torch.from_numpy(is_elsewhere)] = 0
        self._rank.collectives.all_reduce(rows)
        return rows
