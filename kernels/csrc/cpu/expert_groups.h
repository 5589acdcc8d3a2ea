// Pairs of a row and one of its experts, sorted by expert, then by row.
#pragma once

#include "types.h"

namespace rtp {

struct ExpertGroups {
  int32_t* starts;  // [num_experts + 1]: where each expert's pairs begin, and the end
  int32_t* rows;    // [number of pairs]
  float* weights;   // of the pairs
};

// The pairs of ids and weights [n, top_k] whose expert is in [first, first + num_experts). A row's
// ids differ. Stores final values only.
void group_by_expert(const ExpertGroups& groups, const int32_t* ids, const float* weights,
                     int64_t n, int64_t top_k, int64_t first, int64_t num_experts);

}  // namespace rtp
