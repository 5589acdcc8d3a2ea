// Element types and strided rows, as kernels see them. No Python, no instruction set.
#pragma once

#include <cstdint>

namespace rtp {

// Upper half of an IEEE-754 single.
struct bf16 {
  uint16_t bits;
};

enum class DType { kBf16, kF32 };

}  // namespace rtp
