// The two products of attention, of some rows with one tile: queries by keys, weights by values.
//
// Both add up products in ascending order (of dims, of keys) into one accumulator a lane, so a sum
// does not depend on the rows and columns it is computed beside. The second operand is read as
// words of four bytes (kv_layout.h); its kinds:
//
//   FloatUnits    floats
//   WidenedUnits  bf16, widened as it is read: the same products as of floats
//   PairUnits     bf16, pairs multiplied and added by one VDPBF16PS
//
//   kElements     of a word
//   kOperands     registers that a register of words becomes, one after the other
//   Weight        what the first operand holds; kOperands of its words meet one of the second's
#pragma once

#include "attention.h"
#include "vec.h"

namespace rtp::RTP_ISA_NAMESPACE {

struct FloatUnits {
  using Weight = float;
  static constexpr int kElements = 1, kOperands = 1;
  static constexpr bool kReadsAhead = true;

  template <int kOperand>
  RTP_INLINE VecF operand(const float* words) {
    return load(words);
  }
  RTP_INLINE VecF mac(VecF sum, VecF a, VecF b) { return fma(a, b, sum); }
};

// Out of the cache already.
struct CopiedUnits : FloatUnits {
  static constexpr bool kReadsAhead = false;
};

struct WidenedUnits {
  using Weight = float;
  static constexpr int kElements = 2, kOperands = 2;
  static constexpr bool kReadsAhead = true;

  template <int kOperand>
  RTP_INLINE VecF operand(const float* words) {
    return kOperand == 0 ? even_bf16(load(words)) : odd_bf16(load(words));
  }
  // One element of each word.
  template <int kElement>
  RTP_INLINE VecF half(const float* words) {
    return operand<kElement>(words);
  }
  RTP_INLINE VecF mac(VecF sum, VecF a, VecF b) { return fma(a, b, sum); }
};

#if defined(RTP_HAS_AVX512_BF16)

struct PairUnits {
  using Weight = bf16;
  static constexpr int kElements = 2, kOperands = 1;
  static constexpr bool kReadsAhead = true;

  template <int kOperand>
  RTP_INLINE VecF operand(const float* words) {
    return load(words);
  }
  template <int kElement>
  RTP_INLINE VecF half(const float* words) {
    const __m512i kept = _mm512_set1_epi32(kElement == 0 ? 0xffff : static_cast<int>(0xffff0000u));
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(load(words)), kept));
  }
  RTP_INLINE VecF mac(VecF sum, VecF a, VecF b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_castps_si512(a),
                            (__m512bh)_mm512_castps_si512(b));
  }
};

#endif

constexpr int kTileBlocks = kTileKeys / kBlockTokens;

// One head's keys and values of a tile, by blocks.
struct TileWords {
  const float* keys[kTileBlocks];    // [words of a token][kBlockTokens]
  const float* values[kTileBlocks];  // [kBlockTokens / kElements][columns]
};

#if defined(RTP_HAS_AVX512)
constexpr int kBlockRows = 6, kBlockVectors = 4;
#elif defined(RTP_ISA_avx2)
constexpr int kBlockRows = 6, kBlockVectors = 2;
#else
constexpr int kBlockRows = 4, kBlockVectors = 1;
#endif

template <int kRows, int kVectors>
using Sums = VecF[kRows][kVectors];

// sums[r][v] += a[r * a_stride] * words[v], operand by operand.
template <typename Units, int kOperand, int kRows, int kVectors>
RTP_INLINE void add_operands(Sums<kRows, kVectors>& sums, const float* a, int64_t a_stride,
                             const float* const (&words)[kVectors]) {
  VecF operands[kVectors];
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    operands[v] = Units::template operand<kOperand>(words[v]);
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const VecF factor = set1(a[r * a_stride + kOperand]);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sums[r][v] = Units::mac(sums[r][v], factor, operands[v]);
  }
  if constexpr (kOperand + 1 < Units::kOperands) {
    add_operands<Units, kOperand + 1, kRows, kVectors>(sums, a, a_stride, words);
  }
}

// Queries by the keys of one tile.
struct ScoreProduct {
  const float* queries;  // words, rows query_stride apart
  int64_t query_stride;
  int key_words;
  const TileWords& tile;
  const TileWords& ahead;  // what to fetch meanwhile
  float* scores;           // rows kTileKeys apart
};

template <typename Units, int kRows, int kVectors>
RTP_INLINE void score_block(const ScoreProduct& op, int column) {
  const float *keys[kVectors], *ahead[kVectors];
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    const int key = column + v * kLanes;
    keys[v] = op.tile.keys[key / kBlockTokens] + key % kBlockTokens;
    ahead[v] = op.ahead.keys[key / kBlockTokens] + key % kBlockTokens;
  }
  const float* queries = op.queries;
  const int64_t query_stride = op.query_stride;
  const int64_t end = int64_t{op.key_words} * kBlockTokens;
  Sums<kRows, kVectors> sums;
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sums[r][v] = set1(0.0f);
  }
  for (int64_t word = 0; word < end; word += kBlockTokens, queries += Units::kOperands) {
    const float* words[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      words[v] = keys[v] + word;
      if constexpr (Units::kReadsAhead) __builtin_prefetch(ahead[v] + word);
    }
    add_operands<Units, 0, kRows, kVectors>(sums, queries, query_stride, words);
  }
  float* scores = op.scores + column;
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) store(scores + r * kTileKeys + v * kLanes, sums[r][v]);
  }
}

// Weights by the values of one tile, added to the rows' accumulators.
struct ValueProduct {
  const float* weights;  // words, rows kWeightStride apart
  const TileWords& tile;
  const TileWords& ahead;
  int64_t columns;      // of the values
  float* accumulators;  // rows accumulator_stride apart
  int64_t accumulator_stride;
  int begin, end;  // rows of the tile's values
};

template <typename Units>
constexpr int kWeightStride = kTileKeys * Units::kOperands / Units::kElements;

template <typename Units>
constexpr int kBlockValues = kBlockTokens / Units::kElements;

template <typename Units, int kRows, int kVectors>
RTP_INLINE void value_block(const ValueProduct& op, int column) {
  float* accumulators = op.accumulators + column;
  const int64_t accumulator_stride = op.accumulator_stride, columns = op.columns;
  Sums<kRows, kVectors> sums;
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      sums[r][v] = load(accumulators + r * accumulator_stride + v * kLanes);
    }
  }
  const float* weights = op.weights + op.begin * Units::kOperands;
  for (int row = op.begin; row < op.end;) {
    const int block = row / kBlockValues<Units>, block_end = (block + 1) * kBlockValues<Units>;
    const int64_t offset = row % kBlockValues<Units> * columns + column;
    const float* values = op.tile.values[block] + offset;
    const float* ahead = op.ahead.values[block] + offset;
    const int stop = block_end < op.end ? block_end : op.end;
    for (; row < stop; ++row, weights += Units::kOperands) {
      const float* words[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        words[v] = values + v * kLanes;
        if constexpr (Units::kReadsAhead) __builtin_prefetch(ahead + v * kLanes);
      }
      add_operands<Units, 0, kRows, kVectors>(sums, weights, kWeightStride<Units>, words);
      values += columns;
      if constexpr (Units::kReadsAhead) ahead += columns;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      store(accumulators + r * accumulator_stride + v * kLanes, sums[r][v]);
    }
  }
}

template <typename Units, int kRows, int kVectors>
RTP_INLINE void block_of(const ScoreProduct& op, int column) {
  score_block<Units, kRows, kVectors>(op, column);
}

template <typename Units, int kRows, int kVectors>
RTP_INLINE void block_of(const ValueProduct& op, int column) {
  value_block<Units, kRows, kVectors>(op, column);
}

template <typename Units, int kRows, typename Product>
__attribute__((noinline)) void multiply_rows(const Product& op, int begin, int end) {
  int column = begin;
  for (; column + kBlockVectors * kLanes <= end; column += kBlockVectors * kLanes) {
    block_of<Units, kRows, kBlockVectors>(op, column);
  }
  if constexpr (kBlockVectors >= 4) {
    if (column + 2 * kLanes <= end) {
      block_of<Units, kRows, 2>(op, column);
      column += 2 * kLanes;
    }
  }
  for (; column < end; column += kLanes) block_of<Units, kRows, 1>(op, column);
}

// `rows` from 1 to kBlockRows; columns [begin, end), multiples of kLanes.
template <typename Units, int kRows = kBlockRows, typename Product>
RTP_INLINE void multiply(int rows, const Product& op, int begin, int end) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return multiply<Units, kRows - 1>(rows, op, begin, end);
  }
  multiply_rows<Units, kRows>(op, begin, end);
}

}  // namespace rtp::RTP_ISA_NAMESPACE
