#include "sublayer.h"

#include <stdexcept>
#include <string>

namespace rtp {
namespace {

// As many tokens as a unit turns and writes at least: some of them fill blocks.
constexpr int64_t kWrittenTokens = 64;

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
Linear project_normed(const Step& step, const Norm& norm, const Projection& projection,
                      const void* residual, void* out) {
  Linear op{};
  op.weight = projection.weight;
  op.bias = projection.bias;
  op.x = residual;
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

// residual + projection(x), into the place's `out`.
Linear add_projected(const Step& step, const Place& place, const Projection& projection,
                     const void* x, int64_t x_stride) {
  Linear op{};
  op.weight = projection.weight;
  op.bias = projection.bias;
  op.x = x;
  op.out = place.out;
  op.out_dtype = step.dtype;
  op.m = step.num_tokens;
  op.x_stride = x_stride;
  op.out_stride = step.hidden_size;
  op.residual = place.residual;
  return op;
}

void run_last(const Linear& op, const Place& place, const Member& member) {
  if (place.exchange) {
    place.exchange->add(op, place.sum, place.stage, member);
  } else {
    RTP_DISPATCH(linear)(op, member);
  }
}

// Of the rows between the two products of an MLP: their length is often a multiple of 2 KiB, and
// rows that far apart would share few sets of a cache.
int64_t padded_stride(int64_t columns) { return columns + 32; }

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

// The parts of an attention sublayer's workspace.
struct AttentionSublayer::Buffers {
  char* qkv;       // [num_tokens, qkv_columns]
  char* turned;    // [num_tokens, qkv_columns]: queries and keys
  char* attended;  // [num_tokens, num_heads * head_dim]
  float* partials;
  int64_t bytes;

  Buffers(const AttentionSublayer& sublayer, const Step& step, char* workspace) {
    const Parts& parts = sublayer.parts_;
    const int64_t size = step.num_tokens * itemsize(parts.dtype);
    const int64_t qkv_bytes = aligned(size * sublayer.qkv_columns());
    const int64_t attended_bytes = aligned(size * parts.num_heads * parts.head_dim);
    qkv = workspace;
    turned = qkv + qkv_bytes;
    attended = turned + qkv_bytes;
    partials = reinterpret_cast<float*>(attended + attended_bytes);
    bytes = 2 * qkv_bytes + attended_bytes +
            aligned(step.plan->num_partial_floats() * static_cast<int64_t>(sizeof(float)));
  }
};

int64_t AttentionSublayer::workspace_bytes(const Step& step) const {
  return Buffers(*this, step, nullptr).bytes;
}

Ahead AttentionSublayer::first_reads(const Step& step, const Member& member) const {
  return RTP_DISPATCH(first_weights)(
      project_normed(step, parts_.norm, parts_.qkv, nullptr, nullptr), member);
}

void AttentionSublayer::run(const Step& step, const Place& place, const Member& member,
                            const Ahead& next) const {
  const Buffers buffers(*this, step, place.workspace);
  const Linear o =
      add_projected(step, place, parts_.o, buffers.attended, parts_.num_heads * parts_.head_dim);
  member.reads_next(RTP_DISPATCH(first_weights)(o, member));
  write(step, place, buffers, member);
  RTP_DISPATCH(attend)(attention(step, buffers), *step.plan, member);
  member.reads_next(next);
  run_last(o, place, member);
}

void AttentionSublayer::write_cache(const Step& step, const Place& place,
                                    const Member& member) const {
  write(step, place, Buffers(*this, step, place.workspace), member);
}

// Queries, keys and values, of which the last two go to the cache.
void AttentionSublayer::write(const Step& step, const Place& place, const Buffers& buffers,
                              const Member& member) const {
  RTP_DISPATCH(linear)(project_normed(step, parts_.norm, parts_.qkv, place.residual, buffers.qkv),
                       member);
  const Rotary turn = rotary(step, buffers);
  const WriteKv write = kv_write(step, buffers);
  member.split(step.num_tokens, kWrittenTokens, Repeats::kYes, [&](int64_t begin, int64_t end) {
    RTP_DISPATCH(rotary)(turn, begin, end);
    RTP_DISPATCH(write_kv)(write, begin, end);
  });
}

Rotary AttentionSublayer::rotary(const Step& step, const Buffers& buffers) const {
  const int64_t keys = parts_.num_heads * parts_.head_dim * itemsize(parts_.dtype);
  Rotary op{};
  op.dtype = parts_.dtype;
  op.query = buffers.qkv;
  op.key = buffers.qkv + keys;
  op.query_out = buffers.turned;
  op.key_out = buffers.turned + keys;
  op.positions = step.positions;
  op.cos_sin = parts_.cos_sin;
  op.n = step.num_tokens;
  op.query_heads = parts_.num_heads;
  op.key_heads = parts_.num_kv_heads;
  op.head_dim = parts_.head_dim;
  op.query_stride = op.key_stride = op.query_out_stride = op.key_out_stride = qkv_columns();
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

WriteKv AttentionSublayer::kv_write(const Step& step, const Buffers& buffers) const {
  const int64_t head_bytes = parts_.head_dim * itemsize(parts_.dtype);
  WriteKv op{};
  op.dtype = parts_.dtype;
  op.key = buffers.turned + parts_.num_heads * head_bytes;
  op.value = buffers.qkv + (parts_.num_heads + parts_.num_kv_heads) * head_bytes;
  op.key_cache = cache(step, 0);
  op.value_cache = cache(step, 1);
  op.slots = step.slots;
  op.n = step.num_tokens;
  op.num_kv_heads = parts_.num_kv_heads;
  op.head_dim = parts_.head_dim;
  op.key_stride = op.value_stride = qkv_columns();
  op.block_stride = step.block_stride;
  return op;
}

PagedAttention AttentionSublayer::attention(const Step& step, const Buffers& buffers) const {
  PagedAttention op{};
  op.geometry = step.geometry;
  op.dtype = parts_.dtype;
  op.out = buffers.attended;
  op.query = buffers.turned;
  op.key_cache = cache(step, 0);
  op.value_cache = cache(step, 1);
  op.block_tables = step.block_tables;
  op.num_tokens = step.num_tokens;
  op.query_stride = qkv_columns();
  op.block_tables_stride = step.block_tables_stride;
  op.block_stride = step.block_stride;
  op.scale = parts_.scale;
  op.partials = buffers.partials;
  return op;
}

// Keys (0) or values (1) of the layer.
char* AttentionSublayer::cache(const Step& step, int64_t index) const {
  const int64_t num_bytes =
      parts_.num_kv_heads * kBlockTokens * parts_.head_dim * itemsize(parts_.dtype);
  return step.kv_cache + (2 * parts_.layer + index) * num_bytes;
}

void MlpSublayer::check(const Step& step) const {
  check_stream(step, parts_.dtype, parts_.gate_up.weight.k);
}

int64_t MlpSublayer::workspace_bytes(const Step& step) const {
  const Linear gate_up = project_normed(step, parts_.norm, parts_.gate_up, nullptr, nullptr);
  const int64_t columns =
      RTP_DISPATCH(has_gate)(gate_up) ? parts_.down.weight.k : parts_.gate_up.weight.n;
  return aligned(step.num_tokens * padded_stride(columns) * itemsize(parts_.dtype));
}

Ahead MlpSublayer::first_reads(const Step& step, const Member& member) const {
  return RTP_DISPATCH(first_weights)(
      project_normed(step, parts_.norm, parts_.gate_up, nullptr, nullptr), member);
}

void MlpSublayer::run(const Step& step, const Place& place, const Member& member,
                      const Ahead& next) const {
  Linear gate_up =
      project_normed(step, parts_.norm, parts_.gate_up, place.residual, place.workspace);
  const bool has_gate = RTP_DISPATCH(has_gate)(gate_up);
  gate_up.epilogue = has_gate ? Epilogue::kSiluAndMul : Epilogue::kNone;
  gate_up.out_stride = padded_stride(has_gate ? parts_.down.weight.k : parts_.gate_up.weight.n);
  Linear down = add_projected(step, place, parts_.down, place.workspace, gate_up.out_stride);
  down.prologue = has_gate ? Prologue::kNone : Prologue::kSiluAndMul;
  member.reads_next(RTP_DISPATCH(first_weights)(down, member));
  RTP_DISPATCH(linear)(gate_up, member);
  member.reads_next(next);
  run_last(down, place, member);
}

}  // namespace rtp
