// RMS normalisation of one row.
#pragma once

#include "vec.h"

namespace rtp::RTP_ISA_NAMESPACE {

// Four partial sums of squares, taken round robin by registers of the row, then added in pairs.
struct SumOfSquares {
  VecF parts[4] = {set1(0), set1(0), set1(0), set1(0)};

  RTP_MEMBER void add(int64_t index, VecF v) {
    VecF& part = parts[index & 3];
    part = fma(v, v, part);
  }
  RTP_MEMBER float total() const {
    return reduce_add((parts[0] + parts[1]) + (parts[2] + parts[3]));
  }
};

template <typename T>
RTP_INLINE float inverse_rms(const T* x, int64_t d, float eps) {
  SumOfSquares squares;
  int64_t i = 0;
  for (; i + kLanes <= d; i += kLanes) squares.add(i / kLanes, load(x + i));
  if (i < d) squares.add(i / kLanes, load_first(x + i, static_cast<int>(d - i)));
  return 1.0f / __builtin_sqrtf(squares.total() / static_cast<float>(d) + eps);
}

// x / rms(x) * weight, rounded to T; `out` may hold it as floats.
template <typename T, typename Out>
RTP_INLINE void norm_row(Out* out, const T* x, const T* weight, int64_t d, float eps) {
  const VecF factor = set1(inverse_rms(x, d, eps));
  int64_t i = 0;
  for (; i + kLanes <= d; i += kLanes) {
    store_as<T>(out + i, load(x + i) * factor * load(weight + i));
  }
  if (const int rest = static_cast<int>(d - i)) {
    const VecF normed = load_first(x + i, rest) * factor * load_first(weight + i, rest);
    store_first_as<T>(out + i, normed, rest);
  }
}

}  // namespace rtp::RTP_ISA_NAMESPACE
