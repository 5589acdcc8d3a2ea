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
// merged ascending. Threads take query tiles and partitions as they like: never part of a sum.
#pragma once

#include "isa.h"
#include "types.h"

namespace rtp {

struct PagedAttention {
  DType dtype;
  void* out;                       // [num_tokens, num_heads, head_dim]
  const void* query;               // [num_tokens, num_heads, head_dim]; tokens query_stride apart
  const void* key_cache;           // [num_blocks, num_kv_heads, block_size, head_dim]
  const void* value_cache;         // the same
  const int32_t* block_tables;     // [num_seqs, max_blocks]; rows block_tables_stride apart
  const int32_t* query_start_loc;  // [num_seqs + 1]
  const int32_t* seq_lens;         // [num_seqs]: keys of each sequence with this step's tokens
  // [num_tokens], or null. 0: the token sees all keys up to its own. Otherwise bit j: it sees its
  // sequence's j-th token of this step; all keys before this step's tokens are visible.
  const int64_t* ancestor_mask;
  int64_t num_tokens, num_seqs, num_heads, num_kv_heads, head_dim, block_size;
  int64_t query_stride, block_tables_stride;
  int64_t window;  // only this many last visible keys count; 0 for all
  float scale;
};

constexpr int kTileKeys = 64;
constexpr int kPartitionKeys = 256;

// Query tokens of one sequence under one kv head, and the partitions that any of them sees.
struct QueryTile {
  int32_t seq, kv_head;
  int32_t first_token, num_tokens;  // within the sequence's tokens of this step
  int32_t partition_begin, partition_end;
  // Where its partitions' results go when several spans make it: [partitions][rows] partial rows;
  // -1 when one span makes it whole.
  int64_t partials;
};

// What a thread takes: partitions of one query tile.
struct Span {
  int32_t tile;
  int32_t partition_begin, partition_end;
};

struct AttentionWork {
  const QueryTile* tiles;
  const Span* spans;
  const int32_t* split_tiles;  // those with partials, to be merged
  int64_t num_spans, num_split_tiles;
  float* partials;
  bool is_parallel;
};

// Floats of a row of accumulators: head_dim up to a whole register of any level.
constexpr int64_t padded(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }

// A partial row: accumulators, then the maximum and the sum of weights.
constexpr int64_t partial_floats(int64_t head_dim) { return padded(head_dim) + 2; }

}  // namespace rtp

RTP_PER_ISA(void run_attention(const PagedAttention& op, const AttentionWork& work);)
