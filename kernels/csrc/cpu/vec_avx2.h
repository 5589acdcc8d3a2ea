// vec.h for AVX2 with FMA.
#pragma once

#include <immintrin.h>

#include "types.h"

namespace rtp::RTP_ISA_NAMESPACE {

constexpr int kLanes = 8;
using VecF = __m256;

RTP_INLINE VecF set1(float value) { return _mm256_set1_ps(value); }
RTP_INLINE VecF fma(VecF a, VecF b, VecF c) { return _mm256_fmadd_ps(a, b, c); }
RTP_INLINE VecF max(VecF a, VecF b) { return _mm256_max_ps(a, b); }
RTP_INLINE VecF min(VecF a, VecF b) { return _mm256_min_ps(a, b); }

RTP_INLINE unsigned lanes_at_least(VecF a, VecF b) {
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)));
}
RTP_INLINE VecF keep_at_least(VecF a, VecF b) {
  return _mm256_and_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ), a);
}

RTP_INLINE VecF load(const float* source) { return _mm256_loadu_ps(source); }
RTP_INLINE VecF load(const bf16* source) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
RTP_INLINE void store(float* target, VecF v) { _mm256_storeu_ps(target, v); }
RTP_INLINE void store(bf16* target, VecF v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i bias = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i rounded = _mm256_blendv_epi8(_mm256_add_epi32(bits, bias), quiet, nan);
  const __m256i upper = _mm256_srli_epi32(rounded, 16);
  _mm_storeu_si128(
      reinterpret_cast<__m128i*>(target),
      _mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1)));
}

RTP_INLINE VecF even_bf16(VecF words) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(words), 16));
}
RTP_INLINE VecF odd_bf16(VecF words) {
  const __m256i upper = _mm256_set1_epi32(static_cast<int32_t>(0xffff0000u));
  return _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(words), upper));
}

RTP_INLINE float reduce_add(VecF v) {
  const __m128 quad = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 pair = _mm_add_ps(quad, _mm_movehl_ps(quad, quad));
  return _mm_cvtss_f32(_mm_add_ss(pair, _mm_shuffle_ps(pair, pair, 1)));
}

RTP_INLINE float reduce_max(VecF v) {
  const __m128 quad = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 pair = _mm_max_ps(quad, _mm_movehl_ps(quad, quad));
  return _mm_cvtss_f32(_mm_max_ss(pair, _mm_shuffle_ps(pair, pair, 1)));
}

RTP_INLINE bool any_above(VecF a, VecF b) {
  return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0;
}

RTP_INLINE VecF round_nearest(VecF v) {
  return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

RTP_INLINE VecF power2(__m256i n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}

// In two factors, so that n may reach 252. 0 for n < -125.
RTP_INLINE VecF scale2(VecF v, VecF n) {
  const VecF least = set1(-125.0f);
  const __m256i exponent = _mm256_cvtps_epi32(max(least, n));
  const __m256i half = _mm256_srai_epi32(exponent, 1);
  const VecF scaled = v * power2(half) * power2(_mm256_sub_epi32(exponent, half));
  return _mm256_andnot_ps(_mm256_cmp_ps(n, least, _CMP_LT_OQ), scaled);
}

}  // namespace rtp::RTP_ISA_NAMESPACE

#include "vec_partial.h"
