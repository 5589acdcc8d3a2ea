// One step of k in a register tile: how rows of x meet packed weights, two registers a strip.
//
//   Operand<T>   what rows of x are widened to before they meet weights of type T
//   kDepth<T>    how many k a step takes
//   step         adds a step's products to the sums, k ascending
//
// With f32 operands a bf16 product is exact and fma rounds once a product, so AVX2 and AVX512 agree
// bit for bit. AVX512-BF16 has instructions for a pair of k, with its own rounding.
#pragma once

#include "vec.h"

namespace rtp::RTP_ISA_NAMESPACE {

// With two registers of outputs a row, this many rows fill the register file.
#if defined(RTP_HAS_AVX512)
constexpr int kRegisterRows = 12;
#elif defined(RTP_ISA_avx2)
constexpr int kRegisterRows = 6;
#else
constexpr int kRegisterRows = 2;
#endif

// Of a tile: registers of outputs side by side, `kWidth` of each of its strips.
template <int kRows, int kVectors>
using Sums = VecF[kRows][kVectors];

// Rows of a tile, from three bases: twelve pointers would not fit the general registers.
template <typename X>
struct Rows {
  const X* bases[3];
  int64_t stride;

  Rows(const X* first, int64_t stride_)
      : bases{first, first + 4 * stride_, first + 8 * stride_}, stride(stride_) {}

  __attribute__((always_inline)) const X* at(int row, int64_t k) const {
    return bases[row / 4] + row % 4 * stride + k;
  }
};

template <int kRows, int kVectors>
RTP_INLINE void add_products(Sums<kRows, kVectors>& sums, const Rows<float>& x, int64_t k,
                             const VecF (&weights)[kVectors]) {
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) {
    const VecF value = set1(*x.at(row, k));
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) sums[row][i] = fma(value, weights[i], sums[row][i]);
  }
}

template <typename T>
constexpr int kDepth = 1;

template <>
constexpr int kDepth<bf16> = 2;

// Where register i of a step lies, with strips of `strip` elements side by side.
template <int kWidth, typename T>
RTP_INLINE const T* register_at(const T* weight, int64_t strip, int i) {
  return weight + i / kWidth * strip + i % kWidth * kLanes * kDepth<T>;
}

template <int kWidth, int kRows, int kVectors>
RTP_INLINE void step(Sums<kRows, kVectors>& sums, const Rows<float>& x, int64_t k,
                     const float* weight, int64_t strip) {
  VecF weights[kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; ++i) weights[i] = load(register_at<kWidth>(weight, strip, i));
  add_products<kRows, kVectors>(sums, x, k, weights);
}

#if defined(RTP_HAS_AVX512_BF16)

template <typename T>
struct OperandOf {
  using type = T;
};

RTP_INLINE __m512bh load_pairs(const bf16* source) { return (__m512bh)_mm512_loadu_si512(source); }

template <int kWidth, int kRows, int kVectors>
RTP_INLINE void step(Sums<kRows, kVectors>& sums, const Rows<bf16>& x, int64_t k,
                     const bf16* weight, int64_t strip) {
  __m512bh weights[kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; ++i) weights[i] = load_pairs(register_at<kWidth>(weight, strip, i));
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) {
    int pair;
    __builtin_memcpy(&pair, x.at(row, k), sizeof pair);
    const __m512bh value = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) {
      sums[row][i] = _mm512_dpbf16_ps(sums[row][i], value, weights[i]);
    }
  }
}

#else

template <typename T>
struct OperandOf {
  using type = float;
};

#if defined(RTP_HAS_AVX512)
RTP_INLINE VecF first_of_pairs(const bf16* source) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(source), 16));
}
RTP_INLINE VecF second_of_pairs(const bf16* source) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(source), upper));
}
#elif defined(RTP_ISA_avx2)
RTP_INLINE __m256i load_pairs(const bf16* source) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source));
}
RTP_INLINE VecF first_of_pairs(const bf16* source) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(load_pairs(source), 16));
}
RTP_INLINE VecF second_of_pairs(const bf16* source) {
  const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  return _mm256_castsi256_ps(_mm256_and_si256(load_pairs(source), upper));
}
#else
RTP_INLINE VecU load_pairs(const bf16* source) {
  VecU pairs;
  __builtin_memcpy(&pairs, source, sizeof pairs);
  return pairs;
}
RTP_INLINE VecF first_of_pairs(const bf16* source) { return (VecF)(load_pairs(source) << 16); }
RTP_INLINE VecF second_of_pairs(const bf16* source) {
  return (VecF)(load_pairs(source) & 0xffff0000u);
}
#endif

template <int kWidth, int kRows, int kVectors>
RTP_INLINE void step(Sums<kRows, kVectors>& sums, const Rows<float>& x, int64_t k,
                     const bf16* weight, int64_t strip) {
  VecF weights[kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; ++i)
    weights[i] = first_of_pairs(register_at<kWidth>(weight, strip, i));
  add_products<kRows, kVectors>(sums, x, k, weights);
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; ++i)
    weights[i] = second_of_pairs(register_at<kWidth>(weight, strip, i));
  add_products<kRows, kVectors>(sums, x, k + 1, weights);
}

#endif

template <typename T>
using Operand = typename OperandOf<T>::type;

}  // namespace rtp::RTP_ISA_NAMESPACE
