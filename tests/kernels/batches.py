"""Batches over a paged cache for attention tests. Slots that hold no key are NaN."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import ModuleType

import torch
from torch import Tensor

from rtp_serve.ops import compiled, kv_layout, reference

BLOCK_SIZE = 16


@dataclass(frozen=True)
class Heads:
    """Shape of the attention."""

    num_heads: int = 6
    num_kv_heads: int = 2
    head_dim: int = 64


@dataclass(frozen=True)
class PagedBatch:
    """The operands of one paged_attention call, with the caches in plain order."""

    query: Tensor
    key_cache: Tensor
    value_cache: Tensor
    block_tables: Tensor
    query_start_loc: Tensor
    seq_lens: Tensor
    window: int = 0
    ancestor_mask: Tensor | None = None

    def attend(self, ops: ModuleType = compiled) -> Tensor:
        key_cache, value_cache = self.key_cache, self.value_cache
        if ops is compiled:
            key_cache = kv_layout.key_tiles(key_cache)
            value_cache = kv_layout.value_tiles(value_cache)
        return ops.paged_attention(
            self.query,
            key_cache,
            value_cache,
            self.block_tables,
            self.query_start_loc,
            self.seq_lens,
            self.query.shape[2] ** -0.5,
            window=self.window,
            ancestor_mask=self.ancestor_mask,
        )


@dataclass(frozen=True)
class Tokens:
    """One sequence's query, key and value of every position, [num_tokens, heads, head_dim]."""

    query: Tensor
    key: Tensor
    value: Tensor

    def __len__(self) -> int:
        return self.query.shape[0]

    def until(self, length: int) -> "Tokens":
        return Tokens(self.query[:length], self.key[:length], self.value[:length])

    def only(self, indices: Sequence[int]) -> "Tokens":
        return Tokens(*(part[list(indices)] for part in (self.query, self.key, self.value)))


def make_tokens(heads: Heads, length: int, dtype: torch.dtype, seed: int = 0) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    counts = (heads.num_heads, heads.num_kv_heads, heads.num_kv_heads)
    fused = torch.randn(length, sum(counts), heads.head_dim, generator=generator).to(dtype)
    return Tokens(*fused.split(counts, dim=1))


def make_batch(
    heads: Heads, sequences: Sequence[tuple[Tokens, int]], window: int = 0, seed: int = 0
) -> PagedBatch:
    """Each sequence is (its tokens so far, how many of the last are queries of this step).

    Blocks are dealt at random; block 0 stays free.
    """
    generator = torch.Generator().manual_seed(seed)
    counts = [-(-len(tokens) // BLOCK_SIZE) for tokens, _ in sequences]
    order = torch.randperm(sum(counts), generator=generator) + 1
    dtype = sequences[0][0].key.dtype if sequences else torch.float32
    shape = (sum(counts) + 1, heads.num_kv_heads, BLOCK_SIZE, heads.head_dim)
    key_cache = torch.full(shape, float("nan"), dtype=dtype)
    value_cache = key_cache.clone()
    block_tables = torch.zeros(len(sequences), max(counts, default=0) + 1, dtype=torch.int32)
    for row, ((tokens, _), blocks) in enumerate(zip(sequences, order.split(counts), strict=True)):
        block_tables[row, : len(blocks)] = blocks
        positions = torch.arange(len(tokens))
        slots = blocks[positions // BLOCK_SIZE] * BLOCK_SIZE
        slots += positions % BLOCK_SIZE
        reference.write_kv(tokens.key, tokens.value, key_cache, value_cache, slots)
    queries = [tokens.query[len(tokens) - count :] for tokens, count in sequences]
    starts = torch.tensor([0, *(count for _, count in sequences)]).cumsum(0)
    return PagedBatch(
        query=torch.cat(queries) if queries else torch.empty(0, *shape[1:2], shape[3], dtype=dtype),
        key_cache=key_cache,
        value_cache=value_cache,
        block_tables=block_tables,
        query_start_loc=starts.to(torch.int32),
        seq_lens=torch.tensor([len(tokens) for tokens, _ in sequences], dtype=torch.int32),
        window=window,
    )


def with_strided_query(batch: PagedBatch) -> PagedBatch:
    """The query as a slice of a wider tensor, as it lies in the output of a fused projection."""
    num_tokens, num_heads, head_dim = batch.query.shape
    fused = torch.full((num_tokens, (num_heads + 3) * head_dim), float("nan")).to(batch.query.dtype)
    view = fused[:, head_dim : (num_heads + 1) * head_dim].view(batch.query.shape)
    view.copy_(batch.query)
    return replace(batch, query=view)
