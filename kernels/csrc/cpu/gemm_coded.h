// Coded strips on their way into a product: as they are, for rows that fit one tile, or by way of a
// plain strip. See coded_strip.h.
#pragma once

#include "coded_strip.h"
#include "gemm_tile.h"

namespace rtp::RTP_ISA_NAMESPACE {

#if defined(RTP_HAS_AVX512_BF16)

// Groups of a strip, of which the caller says whether they have escapes.
class CodedReader {
 public:
  RTP_MEMBER explicit CodedReader(const CodedStrip& strip)
      : escapes_(strip.escapes),
        end_(strip.end),
        uppers_(_mm512_broadcast_i32x4(
            _mm_loadu_si128(reinterpret_cast<const __m128i*>(strip.uppers)))) {}

  // Two pairs of k, of two registers each. Groups with escapes must come in order.
  RTP_MEMBER void read(const uint8_t* group, bool has_escapes, __m512i (&pairs)[2][2]) {
    // VPERMB looks at six bits, of which the upper two are the other code's and change nothing.
    const __m512i codes = _mm512_loadu_si512(group + 2 * kPairWeights);
    const __m512i uppers[2] = {_mm512_permutexvar_epi8(codes, uppers_),
                               _mm512_permutexvar_epi8(_mm512_srli_epi16(codes, 4), uppers_)};
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m512i lower = _mm512_loadu_si512(group + half * kPairWeights);
      pairs[half][0] = _mm512_unpacklo_epi8(lower, uppers[half]);
      pairs[half][1] = _mm512_unpackhi_epi8(lower, uppers[half]);
    }
    if (__builtin_expect(has_escapes, 0)) {
      const __m512i low = _mm512_set1_epi8(kEscapeCode);
      insert(_mm512_cmpeq_epi8_mask(_mm512_and_si512(codes, low), low), pairs[0]);
      const __m512i second = _mm512_and_si512(_mm512_srli_epi16(codes, 4), low);
      insert(_mm512_cmpeq_epi8_mask(second, low), pairs[1]);
    }
  }

 private:
  // The escapes of a pair in their places.
  RTP_MEMBER void insert(__mmask64 escaped, __m512i (&pair)[2]) {
    const __m512i bytes = _mm512_maskz_set1_epi8(escaped, -1), none = _mm512_setzero_si512();
    insert_words(_mm512_movepi16_mask(_mm512_unpacklo_epi8(none, bytes)), pair[0]);
    insert_words(_mm512_movepi16_mask(_mm512_unpackhi_epi8(none, bytes)), pair[1]);
  }
  RTP_MEMBER void insert_words(__mmask32 escaped, __m512i& words) {
    const int count = __builtin_popcount(escaped);
    if (count > end_ - escapes_) return;  // the strip is damaged
    words = _mm512_mask_expandloadu_epi16(words, escaped, escapes_);
    escapes_ += count;
  }

  const bf16* escapes_;
  const bf16* const end_;
  const __m512i uppers_;  // four times
};

// A bit of a strip's words for each group in turn.
class EscapedGroups {
 public:
  RTP_MEMBER explicit EscapedGroups(const uint64_t* words) : words_(words) {}

  RTP_MEMBER bool next() {
    if (index_ % 64 == 0) word_ = words_[index_ / 64];
    const bool is_escaped = word_ & 1;
    word_ >>= 1;
    ++index_;
    return is_escaped;
  }

 private:
  const uint64_t* words_;
  uint64_t word_ = 0;
  uint32_t index_ = 0;
};

RTP_INLINE void store_pair_of(bf16* plain, const __m512i (&pair)[2]) {
  _mm512_storeu_si512(plain, pair[0]);
  _mm512_storeu_si512(plain + kStripOutputs, pair[1]);
}

// A strip, or two of them, as multiply() has plain ones: the same sums in the same order. Leaves
// one strip plain in `plain` for further tiles if told so; beside the products that costs next to
// nothing.
template <int kRows, int kStrips, bool kKeepsPlain>
__attribute__((noinline)) void multiply_coded(const Tile<bf16>& tile,
                                              [[maybe_unused]] bf16* plain) {
  constexpr int kWidth = kStripWidth, kVectors = kStrips * kWidth;
  constexpr int kLocality = kKeepsPlain ? 3 : kFewTilesLocality;
  const Rows<bf16> x(tile.x, tile.x_stride);
  const int64_t stream = (kStrips - 1) * tile.distance * tile.coded_bytes;
  const CodedStrip strips[2] = {{tile.coded, tile.escapes, tile.k},
                                {tile.coded + stream, tile.escapes, tile.k}};
  CodedReader readers[2] = {CodedReader(strips[0]), CodedReader(strips[1])};
  EscapedGroups escaped[2] = {EscapedGroups(strips[0].escaped), EscapedGroups(strips[1].escaped)};
  const uint8_t* group = strips[0].groups;
  const char* ahead = tile.ahead;
  const int64_t ahead_step = 2 * tile.ahead_step;
  Sums<kRows, kVectors> sums;
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) sums[row][i] = set1(0);
  }
  const auto add = [&](int64_t k, int halves) __attribute__((always_inline)) {
#pragma GCC unroll 2
    for (int strip = 0; strip < kStrips; ++strip) {
#pragma GCC unroll 3
      for (int64_t byte = 0; byte < kCodedGroupBytes; byte += 64) {
        __builtin_prefetch(ahead + strip * stream + byte, 0, kLocality);
      }
      __m512i pairs[2][2];
      readers[strip].read(group + strip * stream, escaped[strip].next(), pairs);
#pragma GCC unroll 2
      for (int half = 0; half < halves; ++half) {
        if constexpr (kKeepsPlain) store_pair_of(plain + half * kPairWeights, pairs[half]);
#pragma GCC unroll 16
        for (int row = 0; row < kRows; ++row) {
          int pair;
          __builtin_memcpy(&pair, x.at(row, k + 2 * half), sizeof pair);
          const __m512bh value = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 2
          for (int i = 0; i < kWidth; ++i) {
            VecF& sum = sums[row][strip * kWidth + i];
            sum = _mm512_dpbf16_ps(sum, value, (__m512bh)pairs[half][i]);
          }
        }
      }
    }
    group += kCodedGroupBytes;
    ahead += ahead_step;
    if constexpr (kKeepsPlain) plain += 2 * kPairWeights;
  };
  int64_t k = 0;
  for (; k + 2 < tile.k; k += kCodedGroup) add(k, 2);
  if (k < tile.k) add(k, 1);
  tile.out_dtype == DType::kBf16 ? store_tile<bf16, kWidth, kRows, kVectors>(tile, sums)
                                 : store_tile<float, kWidth, kRows, kVectors>(tile, sums);
}

template <int kRows, int kStrips, bool kKeepsPlain = false>
void multiply_coded_rows(const Tile<bf16>& tile, int64_t rows, bf16* plain = nullptr) {
  if (rows == kRows) {
    multiply_coded<kRows, kStrips, kKeepsPlain>(tile, plain);
  } else if constexpr (kRows > 1) {
    multiply_coded_rows<kRows - 1, kStrips, kKeepsPlain>(tile, rows, plain);
  }
}

inline void expand_strip(bf16* plain, const char* data, const bf16* escapes, int64_t k) {
  const CodedStrip strip(data, escapes, k);
  CodedReader reader(strip);
  EscapedGroups escaped(strip.escaped);
  const uint8_t* group = strip.groups;
  for (int64_t i = 0; i < k; i += kCodedGroup, plain += 2 * kPairWeights) {
    __m512i pairs[2][2];
    reader.read(group, escaped.next(), pairs);
    store_pair_of(plain, pairs[0]);
    store_pair_of(plain + kPairWeights, pairs[1]);
    group += kCodedGroupBytes;
  }
}

#else

// Slowly: weights are not coded for these levels.
[[maybe_unused]] inline void expand_strip(bf16* plain, const char* data, const bf16* escapes,
                                          int64_t k) {
  CodedStrip strip(data, escapes, k);
  for (int64_t pair = 0; 2 * pair < k; ++pair, plain += kPairWeights) {
    const uint8_t* group = strip.groups + pair / 2 * kCodedGroupBytes;
    for (int i = 0; i < kPairWeights; ++i) {
      const int place = coded_place(i);
      const int code = group[2 * kPairWeights + place] >> 4 * (pair % 2) & 15;
      const uint8_t lower = group[pair % 2 * kPairWeights + place];
      if (code != kEscapeCode) {
        plain[i] = {static_cast<uint16_t>(strip.uppers[code] << 8 | lower)};
      } else {
        plain[i] = strip.escapes < strip.end ? *strip.escapes++ : bf16{};
      }
    }
  }
}

#endif

// Elements that a plain strip of four k at a time takes.
constexpr int64_t expanded_elements(int64_t k) { return coded_groups(k) * 2 * kPairWeights; }

}  // namespace rtp::RTP_ISA_NAMESPACE
