// vec.h for AVX512 (F, BW, DQ, VL), with AVX512_BF16 where the level has it.
#pragma once

#include <immintrin.h>

#include "isa.h"
#include "types.h"

namespace rtp::RTP_ISA_NAMESPACE {

constexpr int kLanes = 16;
using VecF = __m512;

RTP_INLINE VecF set1(float value) { return _mm512_set1_ps(value); }
RTP_INLINE VecF fma(VecF a, VecF b, VecF c) { return _mm512_fmadd_ps(a, b, c); }
RTP_INLINE VecF max(VecF a, VecF b) { return _mm512_max_ps(a, b); }
RTP_INLINE VecF min(VecF a, VecF b) { return _mm512_min_ps(a, b); }

RTP_INLINE unsigned lanes_at_least(VecF a, VecF b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
RTP_INLINE VecF keep_at_least(VecF a, VecF b) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_GE_OQ), a);
}

RTP_INLINE VecF widen(__m256i half) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

RTP_INLINE __m256i narrow(VecF v) {
#if defined(RTP_HAS_AVX512_BF16)
  return (__m256i)_mm512_cvtneps_pbh(v);
#else
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
#endif
}

RTP_INLINE VecF round_to_bf16(VecF v) { return widen(narrow(v)); }

RTP_INLINE VecF load(const float* source) { return _mm512_loadu_ps(source); }
RTP_INLINE VecF load(const bf16* source) {
  return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)));
}
RTP_INLINE void store(float* target, VecF v) { _mm512_storeu_ps(target, v); }
RTP_INLINE void store(bf16* target, VecF v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), narrow(v));
}

// 1 / v for normal v with a normal quotient: relative error below 2^-23.
RTP_INLINE VecF reciprocal(VecF v) {
  const VecF guess = _mm512_rcp14_ps(v);
  return fma(guess, fma(v, guess * set1(-1.0f), set1(1.0f)), guess);
}

#if defined(RTP_HAS_AVX512_BF16)
// Two registers side by side: a whole cache line at once.
RTP_INLINE void store_pair(bf16* target, VecF first, VecF second) {
  _mm512_storeu_si512(target, (__m512i)_mm512_cvtne2ps_pbh(second, first));
}
#endif

RTP_INLINE __mmask16 first_lanes(int count) { return static_cast<__mmask16>((1u << count) - 1); }

RTP_INLINE VecF load_first(const float* source, int count) {
  return _mm512_maskz_loadu_ps(first_lanes(count), source);
}
RTP_INLINE VecF load_first(const bf16* source, int count) {
  return widen(_mm256_maskz_loadu_epi16(first_lanes(count), source));
}
RTP_INLINE void store_first(float* target, VecF v, int count) {
  _mm512_mask_storeu_ps(target, first_lanes(count), v);
}
RTP_INLINE void store_first(bf16* target, VecF v, int count) {
  _mm256_mask_storeu_epi16(target, first_lanes(count), narrow(v));
}

RTP_INLINE VecF load_words(const void* source, int count) {
  return _mm512_maskz_loadu_ps(first_lanes(count), source);
}
RTP_INLINE VecF even_bf16(VecF words) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(words), 16));
}
RTP_INLINE VecF odd_bf16(VecF words) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u));
  return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(words), upper));
}

RTP_INLINE float reduce_add(VecF v) {
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  const __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  const __m128 pair = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_add_ss(pair, _mm_shuffle_ps(pair, pair, 1)));
}

RTP_INLINE float reduce_max(VecF v) {
  const __m256 half = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  const __m128 quarter = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  const __m128 pair = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_max_ss(pair, _mm_shuffle_ps(pair, pair, 1)));
}

// reduce_add and reduce_max of sixteen registers: lane i is of register i. The same trees, of all
// at once.
template <typename Combine>
RTP_INLINE VecF reduce_all(const VecF (&v)[kLanes], Combine combine) {
  // Halves, then quarters, are combined within pairs of registers: register 4 j + q ends in lane j
  // of quarter q, hence which of them meet.
  VecF quarters[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const auto halves = [&](VecF a, VecF b) {
      return combine(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    };
    const VecF low = halves(v[j], v[j + 4]), high = halves(v[j + 8], v[j + 12]);
    quarters[j] =
        combine(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xdd));
  }
  const auto pairs = [&](VecF a, VecF b) {
    return combine(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
  };
  const VecF low = pairs(quarters[0], quarters[1]), high = pairs(quarters[2], quarters[3]);
  return combine(_mm512_shuffle_ps(low, high, 0x88), _mm512_shuffle_ps(low, high, 0xdd));
}

RTP_INLINE bool any_above(VecF a, VecF b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0; }

// The integer nearest to each lane, and v * 2^n for integers n: 0 for n < -125.
RTP_INLINE VecF round_nearest(VecF v) {
  return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
RTP_INLINE VecF scale2(VecF v, VecF n) {
  const __mmask16 kept = _mm512_cmp_ps_mask(n, _mm512_set1_ps(-125.0f), _CMP_NLT_UQ);
  return _mm512_maskz_scalef_ps(kept, v, n);
}

}  // namespace rtp::RTP_ISA_NAMESPACE
