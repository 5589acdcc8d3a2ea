#include "step_arguments.h"

#include <algorithm>

namespace rtp {
namespace {

Scalar scalar_of(DType dtype) { return dtype == DType::kBf16 ? Scalar::kBf16 : Scalar::kF32; }

// [num_tokens], or [3, num_tokens] under M-RoPE.
void set_positions(const char* op, Step& step, const CpuArray& positions_) {
  const Array positions(op, "positions", positions_);
  positions.of(Scalar::kI64);
  const bool has_rows = positions.rank() == 2;
  if (has_rows) {
    positions.shape({3, step.num_tokens}).contiguous(1);
  } else {
    positions.shape({step.num_tokens}).contiguous();
  }
  step.positions = positions.data<const int64_t>();
  step.num_position_rows = has_rows ? 3 : 1;
  step.positions_stride = has_rows ? positions.stride(0) : 0;
  for (int64_t row = 0; row < step.num_position_rows; ++row) {
    const int64_t* position = step.positions + row * step.positions_stride;
    for (int64_t token = 0; token < step.num_tokens; ++token) {
      require(position[token] >= 0, std::string(op) + ": positions must not be negative");
      step.last_position = std::max(step.last_position, position[token]);
    }
  }
}

}  // namespace

Sublayers sublayers_of(const std::vector<const BoundSublayer*>& bound) {
  Sublayers sublayers;
  for (const BoundSublayer* each : bound) sublayers.push_back(each->sublayer.get());
  return sublayers;
}

Step check_step(const char* op, const Sublayers& sublayers, const Stream& stream,
                const StepArrays& arrays) {
  Step step{};
  step.dtype = stream.dtype;
  step.num_tokens = stream.num_tokens;
  step.hidden_size = stream.hidden_size;
  set_positions(op, step, arrays.positions);
  const Array kv_cache(op, "kv_cache", arrays.kv_cache);
  kv_cache.of(scalar_of(stream.dtype)).shape({kAny, kAny, 2, kAny, kBlockTokens, kAny});
  step.kv_cache = kv_cache.contiguous(1).data<char>();
  step.num_blocks = kv_cache.size(0);
  step.num_layers = kv_cache.size(1);
  step.block_stride = kv_cache.stride(0);
  step.slots = check_slots(op, arrays.slots, step.num_tokens, step.num_blocks);
  AttentionGeometry heads{};
  heads.num_kv_heads = heads.num_heads = kv_cache.size(3);
  for (const Sublayer* sublayer : sublayers) {
    heads.num_heads = std::max(heads.num_heads, sublayer->num_heads());
  }
  heads.head_dim = kv_cache.size(5);
  const Sequences sequences =
      check_sequences(op, arrays.sequences, heads, step.num_tokens, step.num_blocks);
  step.geometry = sequences.geometry;
  step.block_tables = sequences.block_tables;
  step.block_tables_stride = sequences.block_tables_stride;
  for (const Sublayer* sublayer : sublayers) sublayer->check(step);
  return step;
}

Norm bind_norm(const char* op, const char* name, const CpuArray& weight_, float eps, DType dtype,
               int64_t size) {
  if (!weight_.is_valid()) return {nullptr, eps};
  const Array weight(op, name, weight_);
  weight.of(scalar_of(dtype)).shape({size}).contiguous();
  return {weight.data(), eps};
}

}  // namespace rtp
