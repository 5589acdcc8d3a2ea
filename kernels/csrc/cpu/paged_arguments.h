// What the bindings over the paged cache take and check alike. Errors name the op.
#pragma once

#include <string>

#include "array.h"
#include "attention.h"

namespace rtp {

// Throws ValueError with `message` unless `holds`.
void require(bool holds, const std::string& message);

// The arrays that say which tokens and blocks are a sequence's, and what its tokens see.
struct SequenceArrays {
  const CpuArray& block_tables;
  const CpuArray& query_start_loc;
  const CpuArray& seq_lens;
  int64_t window;
  const CpuArray& ancestor_mask;  // or None
};

struct Sequences {
  AttentionGeometry geometry;
  const int32_t* block_tables;
  int64_t block_tables_stride;
};

// Of `num_tokens` tokens over a cache of `num_blocks`; `heads` has num_heads, num_kv_heads and
// head_dim set.
Sequences check_sequences(const char* op, const SequenceArrays& arrays,
                          const AttentionGeometry& heads, int64_t num_tokens, int64_t num_blocks);

// [num_tokens] slots, each of a cache of `num_blocks`, or -1.
const int64_t* check_slots(const char* op, const CpuArray& slots, int64_t num_tokens,
                           int64_t num_blocks);

// The calling thread's last plan, as long as it fits: the layers of a step share it.
const AttentionPlan& plan_for(const AttentionGeometry& geometry);

}  // namespace rtp
