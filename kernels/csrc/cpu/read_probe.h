// Reads memory as fast as it comes and does nothing with it: the ceiling of a decode step.
#pragma once

#include <atomic>
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

// Adds what the member read of it to `total`: the sum of 64-bit words, which wraps.
RTP_PER_ISA(void read_memory(const ReadProbe& op, std::atomic<uint64_t>& total,
                             const Member& member);)
