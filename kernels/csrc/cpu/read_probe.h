// Reads memory as fast as it comes and does nothing with it: the ceiling of a decode step.
#pragma once

#include <cstdint>

#include "isa.h"
#include "team.h"

namespace rtp {

// The cache that a prefetch asks for; kNone leaves it to the processor.
enum class Prefetch { kNone, kT0, kT1, kNta };

constexpr int64_t kProbeAlignment = 64;

struct ReadProbe {
  const void* data;        // aligned to kProbeAlignment
  int64_t bytes;           // a multiple of 8
  int64_t prefetch_bytes;  // how far ahead
  Prefetch prefetch;
};

}  // namespace rtp

// The member's share: the sum of its 64-bit words, which wraps.
RTP_PER_ISA(uint64_t read_memory(const ReadProbe& op, const Member& member);)
