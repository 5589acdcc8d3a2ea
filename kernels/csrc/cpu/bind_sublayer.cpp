// Bindings of sublayers, and of a run of them.
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "bindings.h"
#include "linear_weight.h"
#include "paged_arguments.h"
#include "sublayer.h"

namespace rtp {
namespace {

// A sublayer and the arrays it reads; its linear weights are kept alive by the binding.
struct BoundSublayer {
  std::unique_ptr<Sublayer> sublayer;
  std::vector<CpuArray> arrays;
};

// A norm over `size` elements of `dtype`; an argument of None gives none.
Norm bind_norm(const char* op, const char* name, const CpuArray& weight_, float eps, DType dtype,
               int64_t size) {
  if (!weight_.is_valid()) return {nullptr, eps};
  const Array weight(op, name, weight_);
  weight.of(dtype == DType::kBf16 ? Scalar::kBf16 : Scalar::kF32).shape({size}).contiguous();
  return {weight.data(), eps};
}

void check_projection(const char* op, const char* name, const Projection& projection, int64_t n,
                      int64_t k, DType dtype) {
  const PackedMatrix& weight = projection.weight;
  require(weight.n == n && weight.k == k && weight.dtype == dtype,
          std::string(op) + ": " + name + " must be [" + std::to_string(n) + ", " +
              std::to_string(k) + "] of the same type as the others, got [" +
              std::to_string(weight.n) + ", " + std::to_string(weight.k) + "]");
}

BoundSublayer attention_sublayer(const CpuArray& norm, float eps, const LinearWeight& qkv,
                                 const LinearWeight& o, const CpuArray& query_norm,
                                 const CpuArray& key_norm, const CpuArray& cos_sin_,
                                 const std::vector<int64_t>& sections, int64_t num_heads,
                                 int64_t num_kv_heads, int64_t head_dim, int64_t layer) {
  const char* name = "attention_sublayer";
  AttentionSublayer::Parts parts{};
  parts.qkv = qkv.projection();
  parts.o = o.projection();
  const DType dtype = parts.dtype = parts.qkv.weight.dtype;
  const int64_t hidden_size = parts.qkv.weight.k;
  check_projection(name, "qkv", parts.qkv, (num_heads + 2 * num_kv_heads) * head_dim, hidden_size,
                   dtype);
  check_projection(name, "o", parts.o, hidden_size, num_heads * head_dim, dtype);
  const Array cos_sin(name, "cos_sin", cos_sin_);
  cos_sin.of(Scalar::kF32).shape({kAny, head_dim}).contiguous(1);
  parts.norm = bind_norm(name, "norm", norm, eps, dtype, hidden_size);
  parts.query_norm = bind_norm(name, "query_norm", query_norm, eps, dtype, head_dim);
  parts.key_norm = bind_norm(name, "key_norm", key_norm, eps, dtype, head_dim);
  parts.num_heads = num_heads;
  parts.num_kv_heads = num_kv_heads;
  parts.head_dim = head_dim;
  parts.cos_sin = cos_sin.data<const float>();
  parts.max_positions = cos_sin.size(0);
  parts.cos_sin_stride = cos_sin.stride(0);
  require(sections.empty() || sections.size() == 3,
          "attention_sublayer: sections must be three counts or none");
  std::copy(sections.begin(), sections.end(), parts.sections);
  parts.layer = layer;
  parts.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  return {std::make_unique<AttentionSublayer>(parts), {norm, query_norm, key_norm, cos_sin_}};
}

BoundSublayer mlp_sublayer(const CpuArray& norm, float eps, const LinearWeight& gate_up,
                           const LinearWeight& down) {
  MlpSublayer::Parts parts{};
  parts.gate_up = gate_up.projection();
  parts.down = down.projection();
  const DType dtype = parts.dtype = parts.gate_up.weight.dtype;
  const int64_t hidden_size = parts.gate_up.weight.k;
  check_projection("mlp_sublayer", "down", parts.down, hidden_size, parts.gate_up.weight.n / 2,
                   dtype);
  parts.norm = bind_norm("mlp_sublayer", "norm", norm, eps, dtype, hidden_size);
  return {std::make_unique<MlpSublayer>(parts), {norm}};
}

struct Free {
  void operator()(char* memory) const { std::free(memory); }
};

// The calling thread's, kept from step to step.
char* workspace(int64_t bytes) {
  static thread_local std::unique_ptr<char, Free> memory;
  static thread_local int64_t size = 0;
  if (bytes > size) {
    const int64_t rounded = (bytes + 63) / 64 * 64;
    memory.reset(static_cast<char*>(std::aligned_alloc(64, rounded)));
    size = memory ? rounded : 0;
    if (!memory) throw std::bad_alloc();
  }
  return memory.get();
}

void run_sublayers(const std::vector<const BoundSublayer*>& sublayers, const CpuArray& residual_,
                   const CpuArray& kv_cache_, const CpuArray& positions_, const CpuArray& slots_,
                   int64_t num_heads, const CpuArray& block_tables_,
                   const CpuArray& query_start_loc_, const CpuArray& seq_lens_, int64_t window,
                   const CpuArray& ancestor_mask_) {
  const char* name = "run_sublayers";
  const Array residual(name, "residual", residual_), kv_cache(name, "kv_cache", kv_cache_);
  const Array positions(name, "positions", positions_), slots(name, "slots", slots_);
  Step step{};
  step.dtype = residual.floating().shape({kAny, kAny}).contiguous().dtype();
  step.residual = residual.data();
  step.num_tokens = residual.size(0);
  step.hidden_size = residual.size(1);
  set_positions(step, positions);
  kv_cache.like(residual).shape({kAny, 2, kAny, kAny, kBlockTokens, kAny}).contiguous();
  step.kv_cache = kv_cache.data<char>();
  step.num_layers = kv_cache.size(0);
  step.num_blocks = kv_cache.size(2);
  ...
}

}  // namespace
}  // namespace rtp
