// The gated MLP's activation.
#pragma once

#include "isa.h"
#include "team.h"
#include "types.h"

namespace rtp {

struct SiluAndMul {
  DType dtype;
  void* out;            // [n, d]
  const void* gate_up;  // [n, 2 d]: gates, then what they gate
  int64_t n, d;
  int64_t gate_up_stride;
};

}  // namespace rtp

RTP_PER_ISA(void silu_and_mul(const SiluAndMul& op, const Member& member);)
