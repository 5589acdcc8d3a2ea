// RMS normalisation.
#pragma once

#include "isa.h"
#include "team.h"
#include "types.h"

namespace rtp {

// Row (i, j) of x starts at i * outer_stride + j * inner_stride; out is contiguous.
struct RmsNorm {
  DType dtype;
  void* out;           // [outer, inner, d]
  const void* x;       // [outer, inner, d]
  const void* weight;  // [d]
  int64_t outer, inner, d;
  int64_t outer_stride, inner_stride;
  float eps;
};

}  // namespace rtp

RTP_PER_ISA(void rms_norm(const RmsNorm& op, const Member& member);)
