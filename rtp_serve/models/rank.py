"""Who computes a model: one rank of several, or one alone."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from rtp_serve.config.model import ModelConfig
from rtp_serve.config.parallel import ParallelConfig
from rtp_serve.ops.draws import NO_TOKEN
from rtp_serve.ops.sampling import greedy
from rtp_serve.parallel.collectives import Alone, Collectives
from rtp_serve.parallel.partition import RankPart, partition


@dataclass(frozen=True, slots=True)
class Rank:
    """A rank's part of the model, and its way to the other ranks.

    All ranks run the same steps, so each calls the same collectives in the same order.
    """

    part: RankPart
    collectives: Collectives

    @property
    def is_alone(self) -> bool:
        return self.part.world_size == 1

    def gather_vocab(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """logits [n, this rank's part of the vocabulary] of every rank → [n, vocab_size]."""
        if self.is_alone:
            return logits
        sizes = self._gathered(np.array([logits.shape[1]], np.float32))[:, 0].astype(int)
        padded = np.zeros((len(logits), sizes.max()), np.float32)
        padded[:, : logits.shape[1]] = logits
        every = self._gathered(padded)
        return np.concatenate(
            [part[:, :size] for part, size in zip(every, sizes, strict=True)], axis=1
        )

    def greedy(self, logits: NDArray[np.float32]) -> NDArray[np.int32]:
        """What `ops.sampling.greedy` gives for `gather_vocab(logits)`, at two numbers a row."""
        token_ids = greedy(logits)
        if self.is_alone:
            return token_ids
        rows = np.arange(len(logits))
        best = logits[rows, token_ids]
        is_missing = token_ids == NO_TOKEN
        best[is_missing] = logits[is_missing].max(axis=1)
        mine = np.stack((best, (token_ids + self.part.vocab[0]).view(np.float32)))
        every = self._gathered(mine)
        # The first rank with the largest has the lowest id among equals; NaN is the largest.
        winner = every[:, 0].argmax(axis=0)
        chosen = every[winner, 1, rows].view(np.int32)
        return np.where(np.isfinite(every[winner, 0, rows]), chosen, np.int32(NO_TOKEN))

    def _gathered(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """[world_size, *values.shape]"""
        gathered: NDArray[np.float32] = self.collectives.all_gather(
            torch.from_numpy(values)
        ).numpy()
        return gathered


def whole(config: ModelConfig) -> Rank:
    """The rank that computes all of it."""
    (part,) = partition(config, ParallelConfig())
    return Rank(part, Alone())
