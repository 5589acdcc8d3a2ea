// Rotary position embedding, halves of a head turned against each other (neox style).
#pragma once

#include "isa.h"
#include "types.h"

namespace rtp {

struct Rotary {
  static constexpr int kMaxHeadDim = 512;

  DType dtype;
  const void* query;  // [n, query_heads, head_dim]; tokens query_stride apart
  const void* key;    // [n, key_heads, head_dim]; tokens key_stride apart
  void* query_out;    // as query, tokens query_out_stride apart; may be the same
  void* key_out;
  const int64_t* positions;  // [n], or [3, n] with rows positions_stride apart
  const float* cos_sin;      // [max_positions, head_dim]: cosines, then sines
  int64_t n, query_heads, key_heads, head_dim;
  int64_t query_stride, key_stride, query_out_stride, key_out_stride;
  int64_t positions_stride, cos_sin_stride;
  // Frequencies driven by each row of positions; all by the first where there is one row.
  int64_t sections[3];
  // [head_dim] each, or null: heads are RMS-normalised before they turn.
  const void* query_norm;
  const void* key_norm;
  float eps;
};

}  // namespace rtp

// Tokens [begin, end).
RTP_PER_ISA(void rotary(const Rotary& op, int64_t begin, int64_t end);)
