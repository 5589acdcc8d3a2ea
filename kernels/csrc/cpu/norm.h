// RMS normalisation, with or without the residual sum before it.
#pragma once

#include "isa.h"
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

struct AddRmsNorm {
  DType dtype;
  void* out;           // [n, d]
  const void* x;       // [n, d]
  void* residual;      // [n, d], becomes residual + x, rounded to its type
  const void* weight;  // [d]
  int64_t n, d;
  int64_t x_stride, residual_stride;
  float eps;
};

}  // namespace rtp

RTP_PER_ISA(void rms_norm(const RmsNorm& op); void add_rms_norm(const AddRmsNorm& op);)
