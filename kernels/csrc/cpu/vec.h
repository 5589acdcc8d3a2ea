// One register of floats at the level this is compiled for. A function is the same sequence of
// operations in every lane; a reduction has one fixed order. `a + b`, `a * b` and `a / b` are the
// compiler's, never fused: fma() says where.
//
//   kLanes, VecF             lanes of a register
//   load, store              kLanes elements, bf16 or float, from or to any address
//   load_first, store_first  the first `count` < kLanes; the lanes beyond load as zero
//   load_words               `count` <= kLanes times four bytes of anything, as a float's bits
//   even_bf16, odd_bf16      the lower or upper half of each such word, widened
//   max, min                 `b` where either is NaN
//   round_to_bf16            as a float
//   any_above                whether a > b in any lane
//   lanes_at_least           a bit for each lane where a >= b, from the lowest; none for NaN
//   keep_at_least            a where a >= b, else zero
#pragma once

#include "isa.h"

#define RTP_INLINE static inline __attribute__((always_inline))
#define RTP_MEMBER inline __attribute__((always_inline))

#if defined(RTP_HAS_AVX512)
#include "vec_avx512.h"
#elif defined(RTP_ISA_avx2)
#include "vec_avx2.h"
#else
#include "vec_portable.h"
#endif

namespace rtp::RTP_ISA_NAMESPACE {

template <typename T>
RTP_INLINE VecF rounded(VecF v) {
  if constexpr (sizeof(T) == sizeof(float)) return v;
  return round_to_bf16(v);
}

// Rounded to T, which `target` may hold as floats.
template <typename T, typename Out>
RTP_INLINE void store_as(Out* target, VecF v) {
  store(target, sizeof(Out) == sizeof(T) ? v : rounded<T>(v));
}
template <typename T, typename Out>
RTP_INLINE void store_first_as(Out* target, VecF v, int count) {
  store_first(target, sizeof(Out) == sizeof(T) ? v : rounded<T>(v), count);
}

// 2^x for x <= 200: relative error below 2e-7, 2^0 is exactly 1, 0 below -125, infinity above 128,
// NaN of NaN. Never subnormal: processors take long over these.
RTP_INLINE VecF exp2(VecF x) {
  const VecF n = round_nearest(x);
  const VecF f = x - n;
  VecF p = set1(1.32647273e-3f);
  p = fma(p, f, set1(9.67151299e-3f));
  p = fma(p, f, set1(5.55073358e-2f));
  p = fma(p, f, set1(2.40222424e-1f));
  p = fma(p, f, set1(6.93147004e-1f));
  p = fma(p, f, set1(1.0f));
  return scale2(p, n);
}

}  // namespace rtp::RTP_ISA_NAMESPACE
