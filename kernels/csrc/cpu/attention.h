// Attention over the paged cache: prefill chunks and decode rows in one call.
//
// The arithmetic of a row is a function of its query, the keys it sees and their number alone.
// Its visible keys, in ascending order, are numbered from 0; this number is the key's index.
//
//   indices    0        64       128      192      256                          limit
//              | tile   | tile   | tile   | tile   | ...                          |
//              |          partition                |  partition ...               |
//
// Within a partition the tiles ascend under one running maximum (online softmax); partitions are
// merged ascending. Tile registers take a partition as one tile. Threads take query tiles and
// partitions as they like: never part of a sum.
#pragma once

#include "attention_plan.h"
#include "isa.h"
#include "kv_layout.h"
#include "team.h"

namespace rtp {

struct PagedAttention {
  AttentionGeometry geometry;
  DType dtype;
  void* out;                    // [num_tokens, num_heads, head_dim]
  const void* query;            // [num_tokens, num_heads, head_dim]; tokens query_stride apart
  const void* key_cache;        // [num_blocks, num_kv_heads, kBlockTokens, head_dim]: kv_layout.h
  const void* value_cache;      // the same; blocks of both are block_stride elements apart
  const int32_t* block_tables;  // [num_seqs, max_blocks]; rows block_tables_stride apart
  int64_t num_tokens;
  int64_t query_stride, block_tables_stride, block_stride;
  float scale;
  float* partials;  // of the plan's num_partial_floats
};

}  // namespace rtp

// `plan` was made of op.geometry.
RTP_PER_ISA(void attend(const PagedAttention& op, const AttentionPlan& plan, const Member& member);)
