// Experts as Python hands them over.
#pragma once

#include "experts.h"
#include "linear_weight.h"

namespace rtp {

// `count` gated MLPs. Throws ValueError naming `op`, unless both weights are of that many experts
// of whole strips.
ExpertStack bind_stack(const char* op, const LinearWeight& gate_up, const LinearWeight& down,
                       int64_t count);

// Raises ValueError unless so many experts can be chosen from.
void check_top_k(const char* op, int64_t top_k, int64_t num_experts);

}  // namespace rtp
