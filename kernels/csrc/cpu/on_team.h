// Pieces of work on the calling thread's team, or on that thread alone where a second one costs
// more than it saves.
#pragma once

#include "gemm_pack.h"
#include "sampling.h"

namespace rtp {

// Below so many products, elements to copy or logits.
constexpr int64_t kParallelProducts = 1 << 17, kParallelElements = 1 << 16,
                  kParallelLogits = 1 << 15;

inline void multiply(const Linear& op) {
  const auto kernel = RTP_DISPATCH(linear);
  run_team(op.m * op.weight.n * op.weight.k > kParallelProducts,
           [&](const Member& member) { kernel(op, member); });
}

// As gather_rows() of gemm_pack.h.
inline void gather_rows(void* out, const int64_t* ids, int64_t count, const PackedMatrix& weight) {
  run_team(count * weight.k > kParallelElements,
           [&](const Member& member) { gather_rows(out, ids, count, weight, member); });
}

inline void sample(const Sample& op) {
  const auto kernel = RTP_DISPATCH(sample);
  run_team(op.n > 1 && op.n * op.vocab_size > kParallelLogits,
           [&](const Member& member) { kernel(op, member); });
}

}  // namespace rtp
