#include "expert_groups.h"

#include "route.h"

namespace rtp {

void group_by_expert(const ExpertGroups& groups, const int32_t* ids, const float* weights,
                     int64_t n, int64_t top_k, int64_t first, int64_t num_experts) {
  int32_t next[kMaxExperts] = {};
  const auto is_here = [&](int64_t expert) { return expert >= 0 && expert < num_experts; };
  for (int64_t i = 0; i < n * top_k; ++i) {
    if (is_here(ids[i] - first)) ++next[ids[i] - first];
  }
  int32_t start = 0;
  for (int64_t expert = 0; expert < num_experts; ++expert) {
    const int32_t count = next[expert];
    groups.starts[expert] = next[expert] = start;
    start += count;
  }
  groups.starts[num_experts] = start;
  for (int64_t row = 0; row < n; ++row) {
    for (int64_t i = row * top_k; i < (row + 1) * top_k; ++i) {
      if (!is_here(ids[i] - first)) continue;
      const int32_t pair = next[ids[i] - first]++;
      groups.rows[pair] = static_cast<int32_t>(row);
      groups.weights[pair] = weights[i];
    }
  }
}

}  // namespace rtp
