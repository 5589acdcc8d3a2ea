// Rows of x on their way to packed weights, and a column of tiles over all of them, whatever the
// level's registers.
#pragma once

#include "gemm_coded.h"
#include "gemm_tile.h"
#if defined(RTP_HAS_AMX)
#include "gemm_amx.h"
#endif

namespace rtp::RTP_ISA_NAMESPACE {

constexpr int kTileOutputs = 2 * kLanes;
static_assert(kStripOutputs % kTileOutputs == 0);

// Rows of x that stay in the second-level cache while the weights pass by. CPUs with AMX have 2 MiB
// of it, and are fast enough to wait for weights that pass too often.
#if defined(RTP_HAS_AMX)
constexpr int64_t kBlockBytes = 1200 << 10;
#else
constexpr int64_t kBlockBytes = 384 << 10;
#endif

// So few rows take two strips at once: reading two streams is faster than one. The streams are the
// halves of a thread's strips, so that each reads on where its last strip ended. No more rows than
// leave registers for two whole strips.
template <typename T>
constexpr int kFewRows = kUsesTileRegisters<T>         ? kTileRows<T> / 2
                         : kRowsOf<2, kStripWidth> > 0 ? kRowsOf<2, kStripWidth>
                                                       : 1;

RTP_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
RTP_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
RTP_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// Of a packed strip.
template <typename T>
RTP_INLINE int64_t strip_size(int64_t k) {
  return ceil_div(k, kDepth<T>) * kDepth<T> * kStripOutputs;
}

// Between copied rows; one cache line more than needed keeps them apart in sets.
template <typename T>
RTP_INLINE int64_t operand_stride(int64_t k) {
  return ceil_div(k, 32) * 32 + 64 / static_cast<int64_t>(sizeof(Operand<T>));
}

// Copied rows that a block has at most.
template <typename T>
RTP_INLINE int64_t block_rows(int64_t k) {
  const int64_t row_bytes = operand_stride<T>(k) * static_cast<int64_t>(sizeof(Operand<T>));
  return most(2 * kTileRows<T>, kBlockBytes / row_bytes);
}

// As operands, to the next whole register, so that an odd k ends in a zero.
template <typename T>
void copy_row(float* to, const T* from, int64_t k) {
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) store(to + i, load(from + i));
  if (i < k) store(to + i, load_first(from + i, static_cast<int>(k - i)));
}

[[maybe_unused]] inline void copy_row(bf16* to, const bf16* from, int64_t k) {
  __builtin_memcpy(to, from, k * sizeof(bf16));
}

// What is read beyond k.
template <typename T>
void end_row(Operand<T>* to, int64_t k) {
  for (int64_t i = k; i % kReadDepth<T>; ++i) to[i] = Operand<T>{};
}

// All `rows`, the first of which are those of `tile`. Under AMX `sums` has room for as many rows of
// a strip, up to whole tiles.
template <int kStrips, typename T>
void multiply_column(const Tile<T>& tile, int64_t rows, float* sums) {
  if constexpr (!kUsesTileRegisters<T>) {
    multiply_tiles<kStrips, kTileWidth>(tile, rows);
  } else if (rows <= kFewRows<T>) {
    multiply_few<kStrips>(tile, rows);
  } else {
    multiply_strip(tile, rows, sums);
  }
}

// A strip from its first outputs to its last, or two of them. `tile` is the one of the first.
//
// Where a strip takes several tiles, memory rests while all but the first of them go over lines
// that are cached by then; as few rows as leave registers for a whole strip do without that.
template <int kStrips, typename T>
void multiply_whole(const Tile<T>& tile, int64_t rows, float* sums) {
  if constexpr (!kUsesTileRegisters<T> && kStripWidth > kTileWidth) {
    if (rows <= kRowsOf<kStrips, kStripWidth>) {
      return multiply_tiles<kStrips, kStripWidth>(tile, rows);
    }
  }
  for (int output = 0; output < kStripOutputs && output < tile.outputs; output += kTileOutputs) {
    multiply_column<kStrips>(tile.beside(output), rows, sums);
  }
}

// A strip that is coded; `plain` has room for an expanded one.
inline Tile<bf16> expanded(const Tile<bf16>& tile, bf16* plain) {
  expand_strip(plain, tile.coded, tile.escapes, tile.k);
  Tile<bf16> own = tile;
  own.weight = plain;
  return own;
}

// The same of coded strips. Up to two tiles of rows take them as they are, of several the first one
// does.
template <int kStrips>
void multiply_coded_whole(const Tile<bf16>& tile, int64_t rows, [[maybe_unused]] float* sums,
                          bf16* plain) {
#if defined(RTP_HAS_AVX512_BF16) && !defined(RTP_HAS_AMX)
  static_assert(kStripWidth == kTileWidth, "a tile has a whole strip");
  constexpr int kRows = kRowsOf<kStrips, kStripWidth>;
  each_tile<kRows>(tile, rows, [&](Tile<bf16> own, int64_t count, int64_t index) {
    if (rows <= 2 * kRows) return multiply_coded_rows<kRows, kStrips>(own, count);
    if constexpr (kStrips == 1) {
      if (index == 0) return multiply_coded_rows<kRows, 1, true>(own, count, plain);
      own.weight = plain;
      multiply_rows<kRows, 1, kTileWidth>(own, count);
    }
  });
#else
  for (int i = 0; i < kStrips; ++i) {
    Tile<bf16> one = i ? tile.beside(tile.apart) : tile;
    one.coded += i * tile.distance * tile.coded_bytes;
    multiply_whole<1>(expanded(one, plain), rows, sums);
  }
#endif
}

}  // namespace rtp::RTP_ISA_NAMESPACE
