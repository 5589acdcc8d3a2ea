#include "attention_plan.h"

#include <algorithm>
#include <array>

namespace rtp {
namespace {

// Rows (tokens times heads of a group) of a query tile: enough to make reading keys and values
// cheap, few enough that the accumulators stay near.
constexpr int64_t kTileRows = 192;

// Reading a key costs about as much as this many rows looking at it.
constexpr int64_t kReadingRows = 6;

// Partitions that a span has at least: merging costs a wait.
constexpr int64_t kSpanPartitions = 2;

// Spans a thread should find, so that the last ones level the threads' loads.
constexpr int64_t kSpansPerThread = 4;

// Row-key pairs below which a second thread costs more than it saves.
constexpr int64_t kParallelCost = 4096;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

AttentionPlan::AttentionPlan(const AttentionGeometry& geometry, int num_threads)
    : geometry_(geometry),
      query_start_loc_(geometry.query_start_loc, geometry.query_start_loc + geometry.num_seqs + 1),
      seq_lens_(geometry.seq_lens, geometry.seq_lens + geometry.num_seqs),
      num_threads_(num_threads) {
  geometry_.query_start_loc = query_start_loc_.data();
  geometry_.seq_lens = seq_lens_.data();
  for (int64_t seq = 0; seq < geometry_.num_seqs; ++seq) add_sequence(seq);
  cut_tiles();
}

AttentionWork AttentionPlan::work() const {
  return {tiles_.data(), spans_.data(), static_cast<int32_t>(spans_.size()), cut_tiles_.data(),
          static_cast<int32_t>(cut_tiles_.size())};
}

bool AttentionPlan::is_for(const AttentionGeometry& geometry, int num_threads) const {
  const auto shape = [](const AttentionGeometry& g) {
    return std::array{g.num_seqs, g.num_heads, g.num_kv_heads,
                      g.head_dim, g.window,    int64_t{g.ancestor_mask != nullptr}};
  };
  return num_threads == num_threads_ && shape(geometry) == shape(geometry_) &&
         std::equal(query_start_loc_.begin(), query_start_loc_.end(), geometry.query_start_loc) &&
         std::equal(seq_lens_.begin(), seq_lens_.end(), geometry.seq_lens);
}

void AttentionPlan::add_sequence(int64_t seq) {
  const int64_t query_len = query_start_loc_[seq + 1] - query_start_loc_[seq];
  const int64_t context = seq_lens_[seq] - query_len;
  const int64_t group = geometry_.num_heads / geometry_.num_kv_heads;
  const int64_t tile_tokens = std::max<int64_t>(1, kTileRows / group);
  // The last tokens see most: first, so that small work is left for the end.
  for (int64_t end = query_len; end > 0; end = std::max<int64_t>(0, end - tile_tokens)) {
    const int64_t first = std::max<int64_t>(0, end - tile_tokens);
    add_tiles(seq, first, end - first, context);
  }
}

void AttentionPlan::add_tiles(int64_t seq, int64_t first, int64_t num_tokens, int64_t context) {
  int64_t key_begin = 0;
  // Under an ancestor mask a token sees at least one key of its step, so its last index is at
  // least `context`; the bound for the causal case is safe there if it is not above that.
  if (geometry_.window > 0) {
    const int64_t last = geometry_.ancestor_mask ? context : context + first;
    key_begin = std::max<int64_t>(0, last - geometry_.window + 1);
  }
  const int64_t key_end = context + first + num_tokens;
  const int64_t rows = num_tokens * (geometry_.num_heads / geometry_.num_kv_heads);
  const int64_t cost = (rows + kReadingRows) * (key_end - key_begin);
  for (int64_t head = 0; head < geometry_.num_kv_heads; ++head) {
    tiles_.push_back({static_cast<int32_t>(seq), static_cast<int32_t>(head),
                      static_cast<int32_t>(first), static_cast<int32_t>(num_tokens),
                      static_cast<int32_t>(key_begin / kPartitionKeys),
                      static_cast<int32_t>(ceil_div(key_end, kPartitionKeys)), -1});
    costs_.push_back(cost);
  }
}

void AttentionPlan::cut_tiles() {
  int64_t total = 0;
  for (const int64_t cost : costs_) total += cost;
  is_parallel_ = num_threads_ > 1 && total > kParallelCost;
  const int64_t share = is_parallel_ ? total / (num_threads_ * kSpansPerThread) + 1 : total + 1;
  for (size_t tile = 0; tile < tiles_.size(); ++tile) cut(static_cast<int32_t>(tile), share);
}

// Cuts a tile into spans of about `share`.
void AttentionPlan::cut(int32_t index, int64_t share) {
  QueryTile& tile = tiles_[index];
  const int64_t partitions = tile.partition_end - tile.partition_begin;
  const int64_t num_spans =
      std::min(std::max<int64_t>(1, partitions / kSpanPartitions), ceil_div(costs_[index], share));
  for (int64_t span = 0; span < num_spans; ++span) {
    const auto bound = [&](int64_t i) {
      return static_cast<int32_t>(tile.partition_begin + partitions * i / num_spans);
    };
    spans_.push_back({index, bound(span), bound(span + 1)});
  }
  if (num_spans == 1) return;
  cut_tiles_.push_back(index);
  tile.partials = num_partial_floats_;
  const int64_t rows = tile.num_tokens * (geometry_.num_heads / geometry_.num_kv_heads);
  num_partial_floats_ += partitions * rows * partial_floats(geometry_.head_dim);
}

}  // namespace rtp
