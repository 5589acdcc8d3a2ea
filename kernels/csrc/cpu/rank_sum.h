// Sums of what several ranks have made, in rank order: not a matter of who came first.
#pragma once

#include "isa.h"
#include "types.h"

namespace rtp {

constexpr int kMaxRanks = 64;

struct RankSum {
  DType dtype;                   // of the parts
  const void* parts[kMaxRanks];  // of rank 0, 1, …
  int num_ranks;
  const void* residual;  // of out's type: the sum is added to it in float. Null: none
  void* out;
  DType out_dtype;  // rounded to it once
};

}  // namespace rtp

RTP_PER_ISA(void rank_sum(const RankSum& op, int64_t begin, int64_t end);)
