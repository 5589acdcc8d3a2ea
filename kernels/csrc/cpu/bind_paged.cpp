// Bindings of what reads or writes the paged cache.
#include <cmath>
#include <optional>

#include "array.h"
#include "attention.h"
#include "bindings.h"
#include "kv_write.h"

namespace rtp {
namespace {

// Elements of keys below which a second thread costs more than it saves.
constexpr int64_t kParallelElements = 1 << 16;

void require(bool holds, const std::string& message) {
  if (!holds) throw nb::value_error(message.c_str());
}

// The cache's [num_blocks, num_kv_heads, kBlockTokens, head_dim], both of its tensors.
void check_cache(const Array& key_cache, const Array& value_cache) {
  key_cache.shape({kAny, kAny, kBlockTokens, kAny}).contiguous();
  value_cache.like(key_cache)
      .shape({key_cache.size(0), key_cache.size(1), kBlockTokens, key_cache.size(3)})
      .contiguous();
}

void py_write_kv(const CpuArray& key_, const CpuArray& value_, const CpuArray& key_cache_,
                 const CpuArray& value_cache_, const CpuArray& slots_) {
  const char* name = "write_kv";
  const Array key(name, "key", key_), value(name, "value", value_), slots(name, "slots", slots_);
  const Array key_cache(name, "key_cache", key_cache_);
  const Array value_cache(name, "value_cache", value_cache_);
  check_cache(key_cache.floating(), value_cache);
  const int64_t num_slots = key_cache.size(0) * kBlockTokens;
  const int64_t heads = key_cache.size(1), head_dim = key_cache.size(3);
  require(head_dim % 2 == 0, "write_kv: head_dim must be even, got " + std::to_string(head_dim));
  key.like(key_cache).shape({kAny, heads, head_dim}).contiguous(1);
  value.like(key_cache).shape({key.size(0), heads, head_dim}).contiguous(1);
  slots.of(Scalar::kI64).shape({key.size(0)}).contiguous();
  const WriteKv op{
      key.dtype(),        key.data(),
      value.data(),       key_cache.data(),
      value_cache.data(), slots.data<const int64_t>(),
      key.size(0),        heads,
      head_dim,           key.stride(0),
      value.stride(0),
  };
  for (int64_t token = 0; token < op.n; ++token) {
    require(op.slots[token] >= -1 && op.slots[token] < num_slots,
            "write_kv: slots[" + std::to_string(token) + "] must be from -1 to " +
                std::to_string(num_slots - 1) + ", got " + std::to_string(op.slots[token]));
  }
  const bool is_parallel = op.n * heads * head_dim > kParallelElements;
  const nb::gil_scoped_release release;
  run_team(is_parallel, [&](const Member& member) { RTP_DISPATCH(write_kv)(op, member); });
}

void check_blocks(const PagedAttention& op, int64_t seq, int64_t num_blocks, int64_t max_blocks) {
  const int64_t used = (op.geometry.seq_lens[seq] + kBlockTokens - 1) / kBlockTokens;
  require(used <= max_blocks, "paged_attention: seq_lens[" + std::to_string(seq) + "] needs " +
                                  std::to_string(used) + " blocks, block_tables has " +
                                  std::to_string(max_blocks));
  const int32_t* blocks = op.block_tables + seq * op.block_tables_stride;
  for (int64_t i = 0; i < used; ++i) {
    if (blocks[i] >= 0 && blocks[i] < num_blocks) continue;
    require(false, "paged_attention: block_tables[" + std::to_string(seq) + ", " +
                       std::to_string(i) + "] must be from 0 to " + std::to_string(num_blocks - 1) +
                       ", got " + std::to_string(blocks[i]));
  }
}

// A token's mask may name itself and tokens before it, among the first 64 of its sequence.
void check_masks(const PagedAttention& op, int64_t begin, int64_t end) {
  for (int64_t token = begin; token < end; ++token) {
    const auto mask = static_cast<uint64_t>(op.geometry.ancestor_mask[token]);
    const int64_t index = token - begin;
    const uint64_t allowed = index >= 63 ? ~uint64_t{0} : (uint64_t{2} << index) - 1;
    require(mask == 0 || (index < 64 && !(mask & ~allowed)),
            "paged_attention: ancestor_mask[" + std::to_string(token) +
                "] names tokens after its own, the sequence's " + std::to_string(index) +
                "-th of this step (of 64 at most)");
  }
}

void check_sequences(const PagedAttention& op, int64_t num_blocks, int64_t max_blocks) {
  const AttentionGeometry& step = op.geometry;
  const int32_t* start = step.query_start_loc;
  require(start[0] == 0, "paged_attention: query_start_loc must start with 0");
  for (int64_t seq = 0; seq < step.num_seqs; ++seq) {
    const int64_t query_len = int64_t{start[seq + 1]} - start[seq];
    require(query_len >= 0 && start[seq + 1] <= op.num_tokens,
            "paged_attention: query_start_loc must ascend to at most " +
                std::to_string(op.num_tokens) + " (rows of query), got " +
                std::to_string(start[seq + 1]) + " at " + std::to_string(seq + 1));
    require(query_len <= step.seq_lens[seq], "paged_attention: seq_lens[" + std::to_string(seq) +
                                                 "] is " + std::to_string(step.seq_lens[seq]) +
                                                 ", less than its " + std::to_string(query_len) +
                                                 " query tokens");
    check_blocks(op, seq, num_blocks, max_blocks);
    if (step.ancestor_mask) check_masks(op, start[seq], start[seq + 1]);
  }
}

// The calling thread's last plan, as long as it fits: the layers of a step share it.
const AttentionPlan& plan_for(const AttentionGeometry& geometry) {
  static thread_local std::optional<AttentionPlan> plan;
  if (!plan || !plan->is_for(geometry, num_threads())) plan.emplace(geometry, num_threads());
  return *plan;
}

void check_heads(const AttentionGeometry& step) {
  require(step.head_dim > 0 && step.head_dim % 2 == 0 && step.head_dim <= 512,
          "paged_attention: head_dim must be even, from 2 to 512, got " +
              std::to_string(step.head_dim));
  require(step.num_kv_heads > 0 && step.num_heads % step.num_kv_heads == 0,
          "paged_attention: query has " + std::to_string(step.num_heads) +
              " heads, not a multiple of the cache's " + std::to_string(step.num_kv_heads));
}

void py_paged_attention(const CpuArray& out_, const CpuArray& query_, const CpuArray& key_cache_,
                        const CpuArray& value_cache_, const CpuArray& block_tables_,
                        const CpuArray& query_start_loc_, const CpuArray& seq_lens_, float scale,
                        int64_t window, const CpuArray& ancestor_mask_) {
  const char* name = "paged_attention";
  const Array out(name, "out", out_), query(name, "query", query_);
  const Array key_cache(name, "key_cache", key_cache_);
  const Array value_cache(name, "value_cache", value_cache_);
  const Array block_tables(name, "block_tables", block_tables_);
  const Array query_start_loc(name, "query_start_loc", query_start_loc_);
  const Array seq_lens(name, "seq_lens", seq_lens_);
  PagedAttention op{};
  AttentionGeometry& step = op.geometry;
  op.dtype = query.floating().shape({kAny, kAny, kAny}).contiguous(1).dtype();
  op.num_tokens = query.size(0);
  step.num_heads = query.size(1);
  step.head_dim = query.size(2);
  out.like(query).shape({op.num_tokens, step.num_heads, step.head_dim}).contiguous();
  check_cache(key_cache.like(query).shape({kAny, kAny, kAny, step.head_dim}), value_cache);
  step.num_kv_heads = key_cache.size(1);
  seq_lens.of(Scalar::kI32).shape({kAny}).contiguous();
  step.num_seqs = seq_lens.size(0);
  query_start_loc.of(Scalar::kI32).shape({step.num_seqs + 1}).contiguous();
  block_tables.of(Scalar::kI32).shape({step.num_seqs, kAny}).contiguous(1);
  if (ancestor_mask_.is_valid()) {
    const Array ancestor_mask(name, "ancestor_mask", ancestor_mask_);
    step.ancestor_mask =
        ancestor_mask.of(Scalar::kI64).shape({op.num_tokens}).contiguous().data<const int64_t>();
  }
  check_heads(step);
  require(std::isfinite(scale) && scale > 0,
          "paged_attention: scale must be above 0, got " + std::to_string(scale));
  require(window >= 0, "paged_attention: window must be 0 or more, got " + std::to_string(window));
  op.out = out.data();
  op.query = query.data();
  op.key_cache = key_cache.data();
  op.value_cache = value_cache.data();
  op.block_tables = block_tables.data<const int32_t>();
  step.query_start_loc = query_start_loc.data<const int32_t>();
  step.seq_lens = seq_lens.data<const int32_t>();
  op.query_stride = query.stride(0);
  op.block_tables_stride = block_tables.stride(0);
  step.window = window;
  op.scale = scale;
  check_sequences(op, key_cache.size(0), block_tables.size(1));
  const nb::gil_scoped_release release;
  const AttentionPlan& plan = plan_for(step);
  run_team(plan.is_parallel(),
           [&](const Member& member) { RTP_DISPATCH(attend)(op, plan, member); });
}

}  // namespace

void bind_paged(nb::module_& module) {
  const auto array = [](const char* name) { return nb::arg(name).noconvert(); };
  module.def("write_kv", &py_write_kv, array("key"), array("value"), array("key_cache"),
             array("value_cache"), array("slots"));
  module.def("paged_attention", &py_paged_attention, array("out"), array("query"),
             array("key_cache"), array("value_cache"), array("block_tables"),
             array("query_start_loc"), array("seq_lens"), nb::arg("scale"), nb::arg("window"),
             array("ancestor_mask").none());
}

}  // namespace rtp
