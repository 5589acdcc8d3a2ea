// A router's logits → the experts of each row and what they count. All in fp32.
#pragma once

#include "isa.h"
#include "types.h"

namespace rtp {

constexpr int64_t kMaxExperts = 1024, kMaxExpertsPerRow = 64;

struct Route {
  const float* logits;  // [n, num_experts], rows logits_stride apart
  int64_t n, num_experts, logits_stride;
  // The largest logits, descending; of equal ones the lower expert first. At most
  // kMaxExpertsPerRow.
  int64_t top_k;
  bool is_renormalized;  // weights are parts of the chosen experts' sum, not of all experts'
  int32_t* ids;          // [n, top_k]
  float* weights;        // [n, top_k]: softmax
};

}  // namespace rtp

// Rows [begin, end); stores final values only. A row with NaN gets experts, and NaN for weights.
// sigmoid: out[i] of x[i * stride].
RTP_PER_ISA(void route(const Route& op, int64_t begin, int64_t end);
            void sigmoid(float* out, const float* x, int64_t n, int64_t stride);)
