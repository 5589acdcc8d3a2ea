// The multiply-accumulate of attention. Both of its products (queries by keys, weights by values)
// are sums over units: a unit is what one lane of mac() takes, one float or two bf16 side by side,
// held as the bits of a float.
#pragma once

#include "vec.h"

namespace rtp::RTP_ISA_NAMESPACE {

// Any element type: a unit is one element, widened to float.
template <typename T>
struct SingleUnits {
  using Element = T;
  using Weight = float;
  static constexpr int kElements = 1;

  RTP_INLINE VecF mac(VecF sum, VecF a, VecF b) { return fma(a, b, sum); }

  // kLanes units from `source`, of which `count` <= kLanes are there; the rest is zero.
  RTP_INLINE VecF load_units(const T* source, int count) {
    return count == kLanes ? load(source) : load_first(source, count);
  }

  // A word of kLanes keys as the rows of its units, `stride` apart.
  RTP_INLINE void store_word(float* target, int64_t stride, VecF word) {
    if constexpr (sizeof(T) == 2) {
      store(target, even_bf16(word));
      store(target + stride, odd_bf16(word));
    } else {
      store(target, word);
    }
  }

  // kLanes units of element c of `even` (and, where units are pairs, of `odd`).
  RTP_INLINE VecF zip(const T* even, const T*, int count) { return load_units(even, count); }
};

#if defined(RTP_ISA_avx512bf16)

// bf16: a unit is two elements, multiplied and added by one VDPBF16PS.
struct PairUnits {
  using Element = bf16;
  using Weight = bf16;
  static constexpr int kElements = 2;

  RTP_INLINE VecF mac(VecF sum, VecF a, VecF b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_castps_si512(a),
                            (__m512bh)_mm512_castps_si512(b));
  }

  RTP_INLINE VecF load_units(const bf16* source, int count) { return load_words(source, count); }

  RTP_INLINE void store_word(float* target, int64_t, VecF word) { store(target, word); }

  RTP_INLINE __m512i words(const bf16* source, int count) {
    return source ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_lanes(count), source))
                  : _mm512_setzero_si512();
  }

  // Lane c: even[c], odd[c]; a null pointer stands for zeros.
  RTP_INLINE VecF zip(const bf16* even, const bf16* odd, int count) {
    const __m512i high = _mm512_slli_epi32(words(odd, count), 16);
    return _mm512_castsi512_ps(_mm512_or_si512(words(even, count), high));
  }

  // Zeroes one element of each unit.
  RTP_INLINE VecF keep_even(VecF units) {
    return _mm512_castsi512_ps(
        _mm512_and_si512(_mm512_castps_si512(units), _mm512_set1_epi32(0xffff)));
  }
  RTP_INLINE VecF keep_odd(VecF units) {
    return _mm512_castsi512_ps(
        _mm512_andnot_si512(_mm512_set1_epi32(0xffff), _mm512_castps_si512(units)));
  }
};

#endif

// Row r, register v of a block of sums: c[r][v] += a[r][u] * b[u][v] for u in [begin, end),
// ascending. One accumulator a lane, so a sum does not depend on the block it is computed in.
struct MacOperands {
  const float* a;  // units, rows a_stride apart
  const float* b;  // registers of units, rows b_stride apart
  float* c;        // sums, rows c_stride apart
  int64_t a_stride, b_stride, c_stride;
  int begin, end;
};

#if defined(RTP_ISA_avx512) || defined(RTP_ISA_avx512bf16)
constexpr int kBlockRows = 6, kBlockVectors = 4;
#elif defined(RTP_ISA_avx2)
constexpr int kBlockRows = 6, kBlockVectors = 2;
#else
constexpr int kBlockRows = 4, kBlockVectors = 1;
#endif

template <typename Units, int kRows, int kVectors>
RTP_INLINE void mac_block(const MacOperands& op, int column, bool accumulate) {
  const float* a = op.a + op.begin;
  const float* b = op.b + op.begin * op.b_stride + column;
  float* c = op.c + column;
  const int64_t a_stride = op.a_stride, b_stride = op.b_stride, c_stride = op.c_stride;
  const int depth = op.end - op.begin;
  VecF sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      sums[r][v] = accumulate ? load(c + r * c_stride + v * kLanes) : set1(0.0f);
    }
  }
  for (int u = 0; u < depth; ++u, b += b_stride) {
    VecF units[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) units[v] = load(b + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const VecF unit = set1(a[r * a_stride + u]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[r][v] = Units::mac(sums[r][v], unit, units[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) store(c + r * c_stride + v * kLanes, sums[r][v]);
  }
}

template <typename Units, int kRows>
void mac_rows(const MacOperands& op, int columns, bool accumulate) {
  int column = 0;
  for (; column + kBlockVectors * kLanes <= columns; column += kBlockVectors * kLanes) {
    mac_block<Units, kRows, kBlockVectors>(op, column, accumulate);
  }
  if constexpr (kBlockVectors >= 4) {
    if (column + 2 * kLanes <= columns) {
      mac_block<Units, kRows, 2>(op, column, accumulate);
      column += 2 * kLanes;
    }
  }
  for (; column < columns; column += kLanes) mac_block<Units, kRows, 1>(op, column, accumulate);
}

// `rows` from 1 to kBlockRows; `columns` a multiple of kLanes. Without `accumulate`, c starts at 0.
template <typename Units, int kRows = kBlockRows>
RTP_INLINE void mac(int rows, const MacOperands& op, int columns, bool accumulate) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return mac<Units, kRows - 1>(rows, op, columns, accumulate);
  }
  mac_rows<Units, kRows>(op, columns, accumulate);
}

}  // namespace rtp::RTP_ISA_NAMESPACE
