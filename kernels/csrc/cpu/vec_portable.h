// vec.h for any processor, in the compiler's own vector types.
#pragma once

#include "types.h"

namespace rtp::RTP_ISA_NAMESPACE {

constexpr int kLanes = 8;
typedef float VecF __attribute__((vector_size(32)));
typedef int32_t VecI __attribute__((vector_size(32)));
typedef uint32_t VecU __attribute__((vector_size(32)));
typedef uint16_t VecHalf __attribute__((vector_size(16)));

RTP_INLINE VecF set1(float value) { return VecF{} + value; }
RTP_INLINE VecF fma(VecF a, VecF b, VecF c) { return a * b + c; }
RTP_INLINE VecF max(VecF a, VecF b) { return a > b ? a : b; }
RTP_INLINE VecF min(VecF a, VecF b) { return a < b ? a : b; }

RTP_INLINE unsigned lanes_at_least(VecF a, VecF b) {
  const VecI found = a >= b;
  unsigned lanes = 0;
  for (int lane = 0; lane < kLanes; ++lane) lanes |= (found[lane] & 1u) << lane;
  return lanes;
}
RTP_INLINE VecF keep_at_least(VecF a, VecF b) { return a >= b ? a : VecF{}; }

RTP_INLINE VecF load(const float* source) {
  VecF v;
  __builtin_memcpy(&v, source, sizeof v);
  return v;
}
RTP_INLINE VecF load(const bf16* source) {
  VecHalf half;
  __builtin_memcpy(&half, source, sizeof half);
  return (VecF)(__builtin_convertvector(half, VecU) << 16);
}
RTP_INLINE void store(float* target, VecF v) { __builtin_memcpy(target, &v, sizeof v); }
RTP_INLINE void store(bf16* target, VecF v) {
  const VecU bits = (VecU)v;
  const VecU rounded = bits + ((bits >> 16) & 1u) + 0x7fffu;
  const VecU chosen = v == v ? rounded : bits | 0x400000u;
  const VecHalf half = __builtin_convertvector(chosen >> 16, VecHalf);
  __builtin_memcpy(target, &half, sizeof half);
}

RTP_INLINE VecF even_bf16(VecF words) { return (VecF)((VecU)words << 16); }
RTP_INLINE VecF odd_bf16(VecF words) { return (VecF)((VecU)words & 0xffff0000u); }

RTP_INLINE float reduce_add(VecF v) {
  const float a = v[0] + v[4], b = v[1] + v[5], c = v[2] + v[6], d = v[3] + v[7];
  return (a + c) + (b + d);
}

RTP_INLINE float reduce_max(VecF v) {
  float largest = v[0];
  for (int lane = 1; lane < kLanes; ++lane) largest = largest > v[lane] ? largest : v[lane];
  return largest;
}

RTP_INLINE bool any_above(VecF a, VecF b) {
  const VecI above = a > b;
  int32_t any = 0;
  for (int lane = 0; lane < kLanes; ++lane) any |= above[lane];
  return any != 0;
}

// Right for |v| < 2^22: adding 1.5 * 2^23 leaves no bit for a fraction.
RTP_INLINE VecF round_nearest(VecF v) { return (v + 12582912.0f) - 12582912.0f; }

RTP_INLINE VecF power2(VecI n) { return (VecF)((n + 127) << 23); }

// In two factors, so that n may reach 252. 0 for n < -125.
RTP_INLINE VecF scale2(VecF v, VecF n) {
  const VecF least = set1(-125.0f);
  const VecI exponent = __builtin_convertvector(max(least, n), VecI);
  const VecI half = exponent >> 1;
  const VecF scaled = v * power2(half) * power2(exponent - half);
  return n < least ? set1(0.0f) : scaled;
}

}  // namespace rtp::RTP_ISA_NAMESPACE

#include "vec_partial.h"
