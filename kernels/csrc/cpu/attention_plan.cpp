#include "attention_plan.h"

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <vector>

namespace rtp {
namespace {

// Rows (tokens times heads of a group) of a query tile: enough to make the packing of keys and
// values cheap, few enough that the accumulators stay near.
constexpr int64_t kTileRows = 96;

// Packing a key costs about as much as this many rows looking at it.
constexpr int64_t kPackingRows = 6;

// Spans a thread should find, so that the last ones level the threads' loads.
constexpr int64_t kSpansPerThread = 4;

// Row-key pairs below which a second thread costs more than it saves.
constexpr int64_t kParallelCost = 4096;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

class Planner {
 public:
  explicit Planner(const PagedAttention& op)
      : op_(op), group_(op.num_heads / op.num_kv_heads), threads_(omp_get_max_threads()) {}

  void plan() {
    tiles_.clear();
    costs_.clear();
    spans_.clear();
    split_tiles_.clear();
    for (int64_t seq = 0; seq < op_.num_seqs; ++seq) add_sequence(seq);
    int64_t total = 0;
    for (const int64_t cost : costs_) total += cost;
    is_parallel_ = threads_ > 1 && total > kParallelCost;
    const int64_t share = is_parallel_ ? total / (threads_ * kSpansPerThread) + 1 : total + 1;
    int64_t partials = 0;
    for (size_t tile = 0; tile < tiles_.size(); ++tile) partials += cut(tile, share, partials);
    if (partials_.size() < static_cast<size_t>(partials)) partials_.resize(partials);
  }

  AttentionWork work() {
    return {tiles_.data(),
            spans_.data(),
            split_tiles_.data(),
            static_cast<int64_t>(spans_.size()),
            static_cast<int64_t>(split_tiles_.size()),
            partials_.data(),
            is_parallel_};
  }

 private:
  void add_sequence(int64_t seq) {
    const int64_t query_len = op_.query_start_loc[seq + 1] - op_.query_start_loc[seq];
    const int64_t context = op_.seq_lens[seq] - query_len;
    const int64_t tile_tokens = std::max<int64_t>(1, kTileRows / group_);
    // The last tokens see most: first, so that small work is left for the end.
    for (int64_t end = query_len; end > 0; end = std::max<int64_t>(0, end - tile_tokens)) {
      const int64_t first = std::max<int64_t>(0, end - tile_tokens);
      add_tiles(seq, first, end - first, context);
    }
  }

  void add_tiles(int64_t seq, int64_t first, int64_t num_tokens, int64_t context) {
    int64_t key_begin = 0;
    // Under an ancestor mask a token sees at least one key of its step, so its last index is at
    // least `context`; the bound for the causal case is safe there if it is not above that.
    if (op_.window > 0) {
      const int64_t last = op_.ancestor_mask ? context : context + first;
      key_begin = std::max<int64_t>(0, last - op_.window + 1);
    }
    const int64_t key_end = context + first + num_tokens;
    const int64_t cost = (num_tokens * group_ + kPackingRows) * (key_end - key_begin);
    for (int64_t head = 0; head < op_.num_kv_heads; ++head) {
      tiles_.push_back({static_cast<int32_t>(seq), static_cast<int32_t>(head),
                        static_cast<int32_t>(first), static_cast<int32_t>(num_tokens),
                        static_cast<int32_t>(key_begin / kPartitionKeys),
                        static_cast<int32_t>(ceil_div(key_end, kPartitionKeys)), -1});
      costs_.push_back(cost);
    }
  }

  // Cuts a tile into spans of about `share`; returns the floats its partial rows take.
  int64_t cut(size_t index, int64_t share, int64_t partials) {
    QueryTile& tile = tiles_[index];
    const int64_t partitions = tile.partition_end - tile.partition_begin;
    const int64_t num_spans = std::min(partitions, ceil_div(costs_[index], share));
    for (int64_t span = 0; span < num_spans; ++span) {
      const auto bound = [&](int64_t i) {
        return static_cast<int32_t>(tile.partition_begin + partitions * i / num_spans);
      };
      spans_.push_back({static_cast<int32_t>(index), bound(span), bound(span + 1)});
    }
    if (num_spans == 1) return 0;
    tile.partials = partials;
    split_tiles_.push_back(static_cast<int32_t>(index));
    return partitions * tile.num_tokens * group_ * partial_floats(op_.head_dim);
  }

  const PagedAttention& op_;
  const int64_t group_, threads_;
  bool is_parallel_ = false;

  // Kept from call to call, so that a step allocates nothing.
  static thread_local std::vector<QueryTile> tiles_;
  static thread_local std::vector<int64_t> costs_;
  static thread_local std::vector<Span> spans_;
  static thread_local std::vector<int32_t> split_tiles_;
  static thread_local std::vector<float> partials_;
};

thread_local std::vector<QueryTile> Planner::tiles_;
thread_local std::vector<int64_t> Planner::costs_;
thread_local std::vector<Span> Planner::spans_;
thread_local std::vector<int32_t> Planner::split_tiles_;
thread_local std::vector<float> Planner::partials_;

// Rows beyond the last sequence are padding: zero, so that nothing undefined goes on.
void clear_padding(const PagedAttention& op) {
  const int64_t used = op.query_start_loc[op.num_seqs];
  const int64_t row_bytes = op.num_heads * op.head_dim * (op.dtype == DType::kBf16 ? 2 : 4);
  std::memset(static_cast<char*>(op.out) + used * row_bytes, 0, (op.num_tokens - used) * row_bytes);
}

}  // namespace

void paged_attention(const PagedAttention& op) {
  clear_padding(op);
  Planner planner(op);
  planner.plan();
  RTP_DISPATCH(run_attention)(op, planner.work());
}

}  // namespace rtp
