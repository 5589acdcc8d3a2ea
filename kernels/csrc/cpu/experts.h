// The experts of a sparse MLP, each over the rows that were routed to it.
//
//   gate_experts   hidden = silu(gate(x)) * up(x), for every pair of a row and an expert
//   sum_experts    out = residual + Σ weight * down(hidden), experts ascending, in fp32
//
// An output is a function of its row and the row's experts: products are those of gemm.h, and sums
// over experts have one order. Weights of an expert without rows are not read.
#pragma once

#include "expert_groups.h"
#include "gemm.h"

namespace rtp {

// Gated MLPs of one shape, one behind the other. Outputs of each are whole strips.
struct ExpertStack {
  PackedMatrix gate_up;  // [count * 2 * inner_size, hidden_size]: an expert's gates, then its ups
  PackedMatrix down;     // [count * hidden_size, inner_size]
  int64_t count, hidden_size, inner_size;
};

// Between rows of hidden columns: if it were a multiple of 2 KiB, they would share few sets of a
// cache.
constexpr int64_t hidden_stride(int64_t inner_size) { return inner_size + 32; }

// A stack at work.
struct ExpertPass {
  ExpertStack stack;
  ExpertGroups groups;
  void* hidden;  // [number of pairs, inner_size], rows hidden_stride() apart

  bool is_rounded;  // each expert's outputs, to the weights' type, before they are weighted
};

struct Experts {
  ExpertPass passes[2];  // summed in this order
  int num_passes;
  const void* x;  // [n, hidden_size], contiguous; the weights' type
  int64_t n;
  const void* residual;  // [n, hidden_size], contiguous, the weights' type; null: none
  void* out;             // the same; without residual f32
};

}  // namespace rtp

RTP_PER_ISA(void gate_experts(const Experts& op, const Member& member);
            void sum_experts(const Experts& op, const Member& member);)
