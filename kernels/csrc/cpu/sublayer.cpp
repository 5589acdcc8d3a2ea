#include "sublayer.h"

#include <stdexcept>
#include <string>

#include "kv_write.h"

namespace rtp {
namespace {

int64_t itemsize(DType dtype) { return dtype == DType::kBf16 ? 2 : 4; }

// A buffer starts on a cache line.
int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

void require(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument("run_sublayers: " + message);
}

void check_stream(const Step& step, DType dtype, int64_t hidden_size) {
  require(step.dtype == dtype && step.hidden_size == hidden_size,
          "residual must have the model's type and " + std::to_string(hidden_size) + " columns");
}

// projection(norm(residual)) into `out`.
Linear project_normed(const Step& step, const Norm& norm, const Projection& projection, void* out) {
  Linear op{};
  op.weight = projection.weight;
  op.bias = projection.bias;
  op.x = step.residual;
  op.out = out;
  op.out_dtype = step.dtype;
  op.m = step.num_tokens;
  op.x_stride = step.hidden_size;
  op.out_stride = projection.weight.n;
  op.prologue = Prologue::kRmsNorm;
  op.norm_weight = norm.weight;
  op.eps = norm.eps;
  return op;
}

// residual += projection(x).
Linear add_projected(const Step& step, const Projection& projection, const void* x,
                     int64_t x_stride) {
  Linear op{};
  op.weight = projection.weight;
  op.bias = projection.bias;
  op.x = x;
  op.out = step.residual;
  op.out_dtype = step.dtype;
  op.m = step.num_tokens;
  op.x_stride = x_stride;
  op.out_stride = step.hidden_size;
  op.adds = true;
  return op;
}

}  // namespace

void AttentionSublayer::check(const Step& step) const {
  const AttentionGeometry& geometry = step.geometry;
  check_stream(step, parts_.dtype, parts_.qkv.weight.k);
  require(geometry.num_heads == parts_.num_heads && geometry.num_kv_heads == parts_.num_kv_heads &&
              geometry.head_dim == parts_.head_dim,
          "a layer's heads differ from the kv_cache's");
  require(parts_.layer < step.num_layers, "kv_cache has fewer layers than the model");
  require(step.last_position < parts_.max_positions,
          "positions must be from 0 to " + std::to_string(parts_.max_positions - 1) + ", got " +
              std::to_string(step.last_position));
}

int64_t AttentionSublayer::workspace_bytes(int64_t num_tokens) const {
  const int64_t size = num_tokens * itemsize(parts_.dtype);
  return aligned(size * qkv_columns()) + aligned(size * parts_.num_heads * parts_.head_dim);
}

Ahead AttentionSublayer::first_reads(const Step& step, const Member& member) const {
  return first_weights(project_normed(step, parts_.norm, parts_.qkv, nullptr), member);
}

void AttentionSublayer::run(const Step& step, const Member& member) const {
  const int64_t head_bytes = parts_.head_dim * itemsize(parts_.dtype);
  const int64_t row_bytes = qkv_columns() * itemsize(parts_.dtype);
  char* const query = step.workspace;
  char* const key = query + parts_.num_heads * head_bytes;
  char* const value = key + parts_.num_kv_heads * head_bytes;
  char* const attended = step.workspace + aligned(step.num_tokens * row_bytes);

  const int64_t width = parts_.num_heads * parts_.head_dim;
  const Linear o = add_projected(step, parts_.o, attended, width);
  const Ahead o_weights = first_weights(o, member);

  RTP_DISPATCH(linear)(project_normed(step, parts_.norm, parts_.qkv, query), member);
  member.wait(o_weights);
  // Both take the same tokens of a member, so there is nothing to wait for between them.
  RTP_DISPATCH(rotary)(rotary(step, query, key), member);
  RTP_DISPATCH(write_kv)(
      {parts_.dtype, key, value, cache(step, 0), cache(step, 1), step.slots, step.num_tokens,
       parts_.num_kv_heads, parts_.head_dim, qkv_columns(), qkv_columns()},
      member);
  member.wait(o_weights);
  RTP_DISPATCH(attend)(attention(step, query, attended), *step.plan, member);
  member.wait(o_weights);
  RTP_DISPATCH(linear)(o, member);
}

Rotary AttentionSublayer::rotary(const Step& step, char* query, char* key) const {
  Rotary op{};
  op.dtype = parts_.dtype;
  op.query = query;
  op.key = key;
  op.positions = step.positions;
  op.cos_sin = parts_.cos_sin;
  op.n = step.num_tokens;
  op.query_heads = parts_.num_heads;
  op.key_heads = parts_.num_kv_heads;
  op.head_dim = parts_.head_dim;
  op.query_stride = op.key_stride = qkv_columns();
  op.positions_stride = step.positions_stride;
  op.cos_sin_stride = parts_.cos_sin_stride;
  op.sections[0] = parts_.head_dim / 2;
  if (step.num_position_rows == 3) {
    for (int i = 0; i < 3; ++i) op.sections[i] = parts_.sections[i];
  }
  op.query_norm = parts_.query_norm.weight;
  op.key_norm = parts_.key_norm.weight;
  op.eps = parts_.query_norm.eps;
  return op;
}

PagedAttention AttentionSublayer::attention(const Step& step, const char* query, char* out) const {
  PagedAttention op{};
  op.geometry = step.geometry;
  op.dtype = parts_.dtype;
  op.out = out;
  op.query = query;
  op.key_cache = cache(step, 0);
  op.value_cache = cache(step, 1);
  op.block_tables = step.block_tables;
  op.num_tokens = step.num_tokens;
  op.query_stride = qkv_columns();
  op.block_tables_stride = step.block_tables_stride;
  op.scale = parts_.scale;
  return op;
}

// Keys (0) or values (1) of the layer.
char* AttentionSublayer::cache(const Step& step, int64_t index) const {
  const int64_t block_bytes =
      parts_.num_kv_heads * kBlockTokens * parts_.head_dim * itemsize(parts_.dtype);
  return step.kv_cache + (2 * parts_.layer + index) * step.num_blocks * block_bytes;
}

void MlpSublayer::check(const Step& step) const {
  check_stream(step, parts_.dtype, parts_.gate_up.weight.k);
}

int64_t MlpSublayer::workspace_bytes(int64_t num_tokens) const {
  return num_tokens * parts_.gate_up.weight.n * itemsize(parts_.dtype);
}

Ahead MlpSublayer::first_reads(const Step& step, const Member& member) const {
  return first_weights(project_normed(step, parts_.norm, parts_.gate_up, nullptr), member);
}

void MlpSublayer::run(const Step& step, const Member& member) const {
  const int64_t columns = parts_.gate_up.weight.n;
  Linear down = add_projected(step, parts_.down, step.workspace, columns);
  down.prologue = Prologue::kSiluAndMul;
  RTP_DISPATCH(linear)(project_normed(step, parts_.norm, parts_.gate_up, step.workspace), member);
  member.wait(first_weights(down, member));
  RTP_DISPATCH(linear)(down, member);
}

}  // namespace rtp
