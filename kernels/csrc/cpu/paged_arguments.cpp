#include "paged_arguments.h"

#include <optional>

namespace rtp {
namespace {

using std::to_string;

void check_heads(const std::string& op, const AttentionGeometry& step) {
  require(step.head_dim > 0 && step.head_dim % 2 == 0 && step.head_dim <= 512,
          op + "head_dim must be even, from 2 to 512, got " + to_string(step.head_dim));
  require(step.num_kv_heads > 0 && step.num_heads % step.num_kv_heads == 0,
          op + "query has " + to_string(step.num_heads) + " heads, not a multiple of the cache's " +
              to_string(step.num_kv_heads));
}

void check_blocks(const std::string& op, const Sequences& step, int64_t seq, int64_t num_blocks,
                  int64_t max_blocks) {
  const int64_t used = (step.geometry.seq_lens[seq] + kBlockTokens - 1) / kBlockTokens;
  require(used <= max_blocks, op + "seq_lens[" + to_string(seq) + "] needs " + to_string(used) +
                                  " blocks, block_tables has " + to_string(max_blocks));
  const int32_t* blocks = step.block_tables + seq * step.block_tables_stride;
  for (int64_t i = 0; i < used; ++i) {
    if (blocks[i] >= 0 && blocks[i] < num_blocks) continue;
    require(false, op + "block_tables[" + to_string(seq) + ", " + to_string(i) +
                       "] must be from 0 to " + to_string(num_blocks - 1) + ", got " +
                       to_string(blocks[i]));
  }
}

// A token's mask may name itself and tokens before it, among the first 64 of its sequence.
void check_masks(const std::string& op, const AttentionGeometry& step, int64_t begin, int64_t end) {
  for (int64_t token = begin; token < end; ++token) {
    const auto mask = static_cast<uint64_t>(step.ancestor_mask[token]);
    const int64_t index = token - begin;
    const uint64_t allowed = index >= 63 ? ~uint64_t{0} : (uint64_t{2} << index) - 1;
    if (mask == 0 || (index < 64 && !(mask & ~allowed))) continue;
    require(false, op + "ancestor_mask[" + to_string(token) +
                       "] names tokens after its own, the sequence's " + to_string(index) +
                       "-th of this step (of 64 at most)");
  }
}

void check_lengths(const std::string& op, const AttentionGeometry& step, int64_t seq,
                   int64_t num_tokens) {
  const int32_t* start = step.query_start_loc;
  const int64_t query_len = int64_t{start[seq + 1]} - start[seq];
  require(query_len >= 0 && start[seq + 1] <= num_tokens,
          op + "query_start_loc must ascend to at most " + to_string(num_tokens) +
              " (rows of query), got " + to_string(start[seq + 1]) + " at " + to_string(seq + 1));
  require(query_len <= step.seq_lens[seq], op + "seq_lens[" + to_string(seq) + "] is " +
                                               to_string(step.seq_lens[seq]) + ", less than its " +
                                               to_string(query_len) + " query tokens");
}

}  // namespace

void require(bool holds, const std::string& message) {
  if (!holds) throw nb::value_error(message.c_str());
}

Sequences check_sequences(const char* name, const SequenceArrays& arrays,
                          const AttentionGeometry& heads, int64_t num_tokens, int64_t num_blocks) {
  const std::string op = std::string(name) + ": ";
  const Array block_tables(name, "block_tables", arrays.block_tables);
  const Array query_start_loc(name, "query_start_loc", arrays.query_start_loc);
  const Array seq_lens(name, "seq_lens", arrays.seq_lens);
  check_heads(op, heads);
  require(arrays.window >= 0, op + "window must be 0 or more, got " + to_string(arrays.window));
  Sequences step{heads, nullptr, 0};
  AttentionGeometry& geometry = step.geometry;
  geometry.window = arrays.window;
  geometry.num_seqs = seq_lens.of(Scalar::kI32).shape({kAny}).contiguous().size(0);
  geometry.seq_lens = seq_lens.data<const int32_t>();
  query_start_loc.of(Scalar::kI32).shape({geometry.num_seqs + 1}).contiguous();
  geometry.query_start_loc = query_start_loc.data<const int32_t>();
  block_tables.of(Scalar::kI32).shape({geometry.num_seqs, kAny}).contiguous(1);
  step.block_tables = block_tables.data<const int32_t>();
  step.block_tables_stride = block_tables.stride(0);
  if (arrays.ancestor_mask.is_valid()) {
    const Array mask(name, "ancestor_mask", arrays.ancestor_mask);
    geometry.ancestor_mask =
        mask.of(Scalar::kI64).shape({num_tokens}).contiguous().data<const int64_t>();
  }
  const int32_t* start = geometry.query_start_loc;
  require(start[0] == 0, op + "query_start_loc must start with 0");
  for (int64_t seq = 0; seq < geometry.num_seqs; ++seq) {
    check_lengths(op, geometry, seq, num_tokens);
    check_blocks(op, step, seq, num_blocks, block_tables.size(1));
    if (geometry.ancestor_mask) check_masks(op, geometry, start[seq], start[seq + 1]);
  }
  return step;
}

const int64_t* check_slots(const char* name, const CpuArray& slots_, int64_t num_tokens,
                           int64_t num_blocks) {
  const Array slots(name, "slots", slots_);
  const int64_t* slot =
      slots.of(Scalar::kI64).shape({num_tokens}).contiguous().data<const int64_t>();
  const int64_t num_slots = num_blocks * kBlockTokens;
  for (int64_t token = 0; token < num_tokens; ++token) {
    if (slot[token] >= -1 && slot[token] < num_slots) continue;
    require(false, std::string(name) + ": slots[" + to_string(token) + "] must be from -1 to " +
                       to_string(num_slots - 1) + ", got " + to_string(slot[token]));
  }
  return slot;
}

const AttentionPlan& plan_for(const AttentionGeometry& geometry) {
  static thread_local std::optional<AttentionPlan> plan;
  if (!plan || !plan->is_for(geometry, num_threads())) plan.emplace(geometry, num_threads());
  return *plan;
}

}  // namespace rtp
