#include "rotary.h"

#include "norm_row.h"

namespace rtp::RTP_ISA_NAMESPACE {
namespace {

struct Turned {
  VecF low, high;
};

RTP_INLINE Turned turn(VecF low, VecF high, VecF cosine, VecF sine) {
  return {low * cosine - high * sine, high * cosine + low * sine};
}

template <typename T>
void turn_head(T* out, const T* head, const float* cosines, const float* sines, int64_t half) {
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const Turned turned =
        turn(load(head + i), load(head + half + i), load(cosines + i), load(sines + i));
    store(out + i, turned.low);
    store(out + half + i, turned.high);
  }
  if (const int rest = static_cast<int>(half - i)) {
    const Turned turned = turn(load_first(head + i, rest), load_first(head + half + i, rest),
                               load_first(cosines + i, rest), load_first(sines + i, rest));
    store_first(out + i, turned.low, rest);
    store_first(out + half + i, turned.high, rest);
  }
}

// The token's row of the table, with several position rows put together in `mixed`.
const float* angles_of(const Rotary& op, int64_t token, float* mixed) {
  const int64_t half = op.head_dim / 2;
  const int64_t* position = op.positions + token;
  if (op.sections[0] == half) return op.cos_sin + *position * op.cos_sin_stride;
  int64_t i = 0;
  for (const int64_t section : op.sections) {
    const float* row = op.cos_sin + *position * op.cos_sin_stride;
    for (const int64_t end = i + section; i < end; ++i) {
      mixed[i] = row[i];
      mixed[half + i] = row[half + i];
    }
    position += op.positions_stride;
  }
  return mixed;
}

template <typename T>
void turn_heads(const Rotary& op, void* out_, const void* heads_, int64_t count, const void* norm,
                const float* angles) {
  const int64_t half = op.head_dim / 2;
  T normed[Rotary::kMaxHeadDim];
  T* out = static_cast<T*>(out_);
  const T* head = static_cast<const T*>(heads_);
  for (int64_t i = 0; i < count; ++i, out += op.head_dim, head += op.head_dim) {
    if (norm) norm_row(normed, head, static_cast<const T*>(norm), op.head_dim, op.eps);
    turn_head(out, norm ? normed : head, angles, angles + half, half);
  }
}

template <typename T>
void turn_token(const Rotary& op, int64_t token) {
  float mixed[Rotary::kMaxHeadDim];
  const float* angles = angles_of(op, token, mixed);
  turn_heads<T>(op, static_cast<T*>(op.query_out) + token * op.query_out_stride,
                static_cast<const T*>(op.query) + token * op.query_stride, op.query_heads,
                op.query_norm, angles);
  turn_heads<T>(op, static_cast<T*>(op.key_out) + token * op.key_out_stride,
                static_cast<const T*>(op.key) + token * op.key_stride, op.key_heads, op.key_norm,
                angles);
}

template <typename T>
void turn_tokens(const Rotary& op, int64_t begin, int64_t end) {
  for (int64_t token = begin; token < end; ++token) turn_token<T>(op, token);
}

}  // namespace

void rotary(const Rotary& op, int64_t begin, int64_t end) {
  op.dtype == DType::kBf16 ? turn_tokens<bf16>(op, begin, end) : turn_tokens<float>(op, begin, end);
}

}  // namespace rtp::RTP_ISA_NAMESPACE
