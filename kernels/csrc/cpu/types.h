// Element types and strided rows, as kernels see them. No Python, no instruction set.
#pragma once

#include <cstdint>

// For what sources of several instruction sets include: it must not stay out of line.
#define RTP_ALWAYS_INLINE inline __attribute__((always_inline))

namespace rtp {

// Upper half of an IEEE-754 single.
struct bf16 {
  uint16_t bits;
};

enum class DType { kBf16, kF32 };

}  // namespace rtp
