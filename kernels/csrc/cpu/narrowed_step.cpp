#include "narrowed_step.h"

#include <algorithm>
#include <numeric>

namespace rtp {
namespace {

// The sequence of `step` that has the token.
int64_t sequence_of(const AttentionGeometry& geometry, int64_t token) {
  const int32_t* starts = geometry.query_start_loc;
  return std::upper_bound(starts, starts + geometry.num_seqs + 1, token) - starts - 1;
}

}  // namespace

NarrowedStep::NarrowedStep(const Step& step, const int64_t* rows, int64_t count)
    : step_(step),
      positions_(step.num_position_rows * count),
      slots_(count),
      query_start_loc_(count + 1),
      seq_lens_(count) {
  std::iota(query_start_loc_.begin(), query_start_loc_.end(), 0);
  std::vector<int64_t> sequences(count);
  int64_t max_blocks = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = rows[i], seq = sequences[i] = sequence_of(step.geometry, row);
    const int64_t later = step.geometry.query_start_loc[seq + 1] - 1 - row;
    seq_lens_[i] = static_cast<int32_t>(step.geometry.seq_lens[seq] - later);
    max_blocks = std::max<int64_t>(max_blocks, (seq_lens_[i] + kBlockTokens - 1) / kBlockTokens);
    slots_[i] = step.slots[row];
    for (int64_t p = 0; p < step.num_position_rows; ++p) {
      positions_[p * count + i] = step.positions[p * step.positions_stride + row];
    }
  }
  block_tables_.resize(count * max_blocks);
  for (int64_t i = 0; i < count; ++i) {
    const int32_t* blocks = step.block_tables + sequences[i] * step.block_tables_stride;
    const int64_t used = (seq_lens_[i] + kBlockTokens - 1) / kBlockTokens;
    std::copy_n(blocks, used, block_tables_.data() + i * max_blocks);
  }
  step_.num_tokens = count;
  step_.positions = positions_.data();
  step_.positions_stride = count;
  step_.slots = slots_.data();
  step_.geometry.query_start_loc = query_start_loc_.data();
  step_.geometry.seq_lens = seq_lens_.data();
  step_.geometry.num_seqs = count;
  step_.block_tables = block_tables_.data();
  step_.block_tables_stride = max_blocks;
  step_.plan = nullptr;
}

}  // namespace rtp
