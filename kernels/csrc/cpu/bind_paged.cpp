// Bindings of what reads or writes the paged cache.
#include <cmath>
#include <memory>

#include "bindings.h"
#include "kv_write.h"
#include "paged_arguments.h"

namespace rtp {
namespace {

// Elements of keys below which a second thread costs more than it saves.
constexpr int64_t kParallelElements = 1 << 16;

// A layer's [num_blocks, num_kv_heads, kBlockTokens, head_dim], both of its tensors: the elements
// from one block to the next.
int64_t check_cache(const char* op, const Array& key_cache, const Array& value_cache) {
  key_cache.shape({kAny, kAny, kBlockTokens, kAny}).contiguous(1);
  value_cache.like(key_cache)
      .shape({key_cache.size(0), key_cache.size(1), kBlockTokens, key_cache.size(3)})
      .contiguous(1);
  if (key_cache.size(0) < 2) return key_cache.size(1) * kBlockTokens * key_cache.size(3);
  const int64_t stride = key_cache.stride(0);
  require(
      value_cache.stride(0) == stride && stride > 0 && stride % 2 == 0,
      std::string(op) + ": blocks of key_cache and value_cache must be equally far apart, got " +
          std::to_string(stride) + " and " + std::to_string(value_cache.stride(0)) + " elements");
  return stride;
}

void py_write_kv(const CpuArray& key_, const CpuArray& value_, const CpuArray& key_cache_,
                 const CpuArray& value_cache_, const CpuArray& slots) {
  const char* name = "write_kv";
  const Array key(name, "key", key_), value(name, "value", value_);
  const Array key_cache(name, "key_cache", key_cache_);
  const Array value_cache(name, "value_cache", value_cache_);
  const int64_t block_stride = check_cache(name, key_cache.floating(), value_cache);
  const int64_t heads = key_cache.size(1), head_dim = key_cache.size(3);
  require(head_dim % 2 == 0, "write_kv: head_dim must be even, got " + std::to_string(head_dim));
  key.like(key_cache).shape({kAny, heads, head_dim}).contiguous(1);
  value.like(key_cache).shape({key.size(0), heads, head_dim}).contiguous(1);
  WriteKv op{};
  op.dtype = key.dtype();
  op.key = key.data();
  op.value = value.data();
  op.key_cache = key_cache.data();
  op.value_cache = value_cache.data();
  op.n = key.size(0);
  op.num_kv_heads = heads;
  op.head_dim = head_dim;
  op.key_stride = key.stride(0);
  op.value_stride = value.stride(0);
  op.block_stride = block_stride;
  op.slots = check_slots(name, slots, op.n, key_cache.size(0));
  const nb::gil_scoped_release release;
  run_team(op.n * heads * head_dim > kParallelElements, [&](const Member& member) {
    member.split(op.n, 4 * kBlockTokens, Repeats::kYes,
                 [&](int64_t begin, int64_t end) { RTP_DISPATCH(write_kv)(op, begin, end); });
  });
}

void py_paged_attention(const CpuArray& out_, const CpuArray& query_, const CpuArray& key_cache_,
                        const CpuArray& value_cache_, const CpuArray& block_tables,
                        const CpuArray& query_start_loc, const CpuArray& seq_lens, float scale,
                        int64_t window, const CpuArray& ancestor_mask) {
  const char* name = "paged_attention";
  const Array out(name, "out", out_), query(name, "query", query_);
  const Array key_cache(name, "key_cache", key_cache_);
  const Array value_cache(name, "value_cache", value_cache_);
  PagedAttention op{};
  AttentionGeometry heads{};
  op.dtype = query.floating().shape({kAny, kAny, kAny}).contiguous(1).dtype();
  op.num_tokens = query.size(0);
  heads.num_heads = query.size(1);
  heads.head_dim = query.size(2);
  out.like(query).shape({op.num_tokens, heads.num_heads, heads.head_dim}).contiguous();
  const int64_t block_stride = check_cache(
      name, key_cache.like(query).shape({kAny, kAny, kAny, heads.head_dim}), value_cache);
  heads.num_kv_heads = key_cache.size(1);
  require(std::isfinite(scale) && scale > 0,
          "paged_attention: scale must be above 0, got " + std::to_string(scale));
  const Sequences sequences =
      check_sequences(name, {block_tables, query_start_loc, seq_lens, window, ancestor_mask}, heads,
                      op.num_tokens, key_cache.size(0));
  op.geometry = sequences.geometry;
  op.block_tables = sequences.block_tables;
  op.block_tables_stride = sequences.block_tables_stride;
  op.out = out.data();
  op.query = query.data();
  op.key_cache = key_cache.data();
  op.value_cache = value_cache.data();
  op.query_stride = query.stride(0);
  op.block_stride = block_stride;
  op.scale = scale;
  const nb::gil_scoped_release release;
  const AttentionPlan& plan = plan_for(op.geometry);
  const std::unique_ptr<float[]> partials(new float[plan.num_partial_floats()]);
  op.partials = partials.get();
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
