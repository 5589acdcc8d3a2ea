// How attention's work is cut for threads. Changes who computes what, never what is computed.
//
// A plan depends on the step alone, not on the layer: made once, it serves every layer.
#pragma once

#include <cstdint>
#include <vector>

namespace rtp {

// What all layers of a step have in common.
struct AttentionGeometry {
  const int32_t* query_start_loc;  // [num_seqs + 1]
  const int32_t* seq_lens;         // [num_seqs]: keys of each sequence with this step's tokens
  // [num_tokens], or null. 0: the token sees all keys up to its own. Otherwise bit j: it sees its
  // sequence's j-th token of this step; all keys before this step's tokens are visible.
  const int64_t* ancestor_mask;
  int64_t num_seqs, num_heads, num_kv_heads, head_dim;
  int64_t window;  // only this many last visible keys count; 0 for all
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

// A plan as kernels see it.
struct AttentionWork {
  const QueryTile* tiles;
  const Span* spans;
  int32_t num_spans;
  const int32_t* cut_tiles;  // those of several spans
  int32_t num_cut_tiles;
};

class AttentionPlan {
 public:
  AttentionPlan(const AttentionGeometry& geometry, int num_threads);

  // Whether there is enough work for more than one thread.
  bool is_parallel() const { return is_parallel_; }

  AttentionWork work() const;

  // Of partial rows, for a call.
  int64_t num_partial_floats() const { return num_partial_floats_; }

  // Whether it was made of the like.
  bool is_for(const AttentionGeometry& geometry, int num_threads) const;

 private:
  void add_sequence(int64_t seq);
  void add_tiles(int64_t seq, int64_t first, int64_t num_tokens, int64_t context);
  void cut_tiles();
  void cut(int32_t index, int64_t share);

  AttentionGeometry geometry_;  // its arrays are those below
  std::vector<int32_t> query_start_loc_, seq_lens_;
  int num_threads_;
  bool is_parallel_ = false;
  std::vector<QueryTile> tiles_;
  std::vector<int64_t> costs_;
  std::vector<Span> spans_;
  std::vector<int32_t> cut_tiles_;
  int64_t num_partial_floats_ = 0;
};

// Floats of a row of accumulators: head_dim up to a whole register of any level.
constexpr int64_t padded(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }

// A partial row: accumulators, then the maximum and the sum of weights.
constexpr int64_t partial_floats(int64_t head_dim) { return padded(head_dim) + 2; }

}  // namespace rtp
