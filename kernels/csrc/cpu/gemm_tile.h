// A tile of a product: some rows by the outputs of a strip, or of two, over all of k; and tiles
// with sums in vector registers. gemm_amx.h has those in tile registers.
#pragma once

#include "gemm.h"
#include "gemm_step.h"
#if defined(RTP_HAS_AMX)
#include "tile_registers.h"
#endif

namespace rtp::RTP_ISA_NAMESPACE {

// Rows of a tile with one strip; with two strips, half as many.
template <typename T>
constexpr int kTileRows = kRegisterRows;

// Registers of outputs that a tile has of a strip, and those of a whole one.
constexpr int kTileWidth = 2;
constexpr int kStripWidth = kStripOutputs / kLanes;

// Rows of a tile in vector registers.
template <int kStrips, int kWidth>
constexpr int kRowsOf = kTileWidth * kRegisterRows / (kStrips * kWidth);

// Rows that cost as much as one: tiles begin at multiples of it.
template <typename T>
constexpr int kRowGrain = 1;

// k that a tile reads at once: operands are zero up to a multiple of it.
template <typename T>
constexpr int kReadDepth = kDepth<T>;

// Whether sums are in the tile registers of AMX.
template <typename T>
constexpr bool kUsesTileRegisters = false;

#if defined(RTP_HAS_AMX)
template <>
constexpr bool kUsesTileRegisters<bf16> = true;
template <>
constexpr int kTileRows<bf16> = 2 * kTileSide;
template <>
constexpr int kRowGrain<bf16> = kTileSide;
template <>
constexpr int kReadDepth<bf16> = kTileDepth;
#endif

template <typename T>
struct Tile {
  const Operand<T>* x;
  int64_t x_stride;
  const T* weight;
  const char* coded = nullptr;  // the strip as it is stored, where that is coded (gemm_coded.h)
  const bf16* escapes = nullptr;
  int64_t coded_bytes = 0;
  int64_t distance;  // from strip to strip, in strips
  int64_t apart;     // their outputs, in columns
  int64_t strip_elements;
  int64_t k;
  int64_t jump;  // bytes from the end of the strip to what is read next: that is fetched meanwhile
  const char* ahead;  // weights to fetch meanwhile
  int64_t ahead_step;
  const float* bias;  // null: none
  void* out;
  DType out_dtype;
  int64_t out_stride;
  const void* residual;  // null: none
  int64_t outputs;       // how many of them exist

  // The tile `rows` further down.
  RTP_MEMBER Tile below(int64_t rows) const {
    const int64_t bytes = rows * out_stride * (out_dtype == DType::kBf16 ? 2 : 4);
    Tile tile = *this;
    tile.x += rows * x_stride;
    tile.out = static_cast<char*>(out) + bytes;
    if (residual) tile.residual = static_cast<const char*>(residual) + bytes;
    return tile;
  }

  // The tile `columns` further on in the same strip.
  RTP_MEMBER Tile beside(int64_t columns) const {
    const int64_t bytes = columns * (out_dtype == DType::kBf16 ? 2 : 4);
    Tile tile = *this;
    tile.weight += columns * kDepth<T>;
    if (bias) tile.bias = bias + columns;
    tile.out = static_cast<char*>(out) + bytes;
    if (residual) tile.residual = static_cast<const char*>(residual) + bytes;
    tile.outputs -= columns;
    return tile;
  }
};

// How far ahead the only tile of a strip reads its weights.
constexpr int64_t kPrefetchBytes = 2048;

// The cache that one or two tiles of rows read them into, as __builtin_prefetch counts: 3 is the
// first level, 2 the second. CPUs with VDPBF16PS alone (Zen 4) have too few reads on their way to
// the first. More tiles find what they need in the second anyway, and have time to bring it nearer.
#if defined(RTP_HAS_AVX512_BF16) && !defined(RTP_HAS_AMX)
constexpr int kFewTilesLocality = 2;
#else
constexpr int kFewTilesLocality = 3;
#endif

RTP_INLINE VecF load_bias(const float* bias, int64_t count) {
  if (count >= kLanes) return load(bias);
  return load_first(bias, static_cast<int>(count > 0 ? count : 0));
}

template <typename Out>
RTP_INLINE void store_outputs(Out* out, const Out* residual, VecF sums, int64_t count) {
  if (count >= kLanes) {
    store(out, residual ? load(residual) + rounded<Out>(sums) : sums);
  } else if (count > 0) {
    const int lanes = static_cast<int>(count);
    store_first(out, residual ? load_first(residual, lanes) + rounded<Out>(sums) : sums, lanes);
  }
}

// Register `i` of a tile's columns: where its outputs go.
template <typename Out, int kWidth = kTileWidth>
struct Columns {
  Out* out;
  const Out* residual;
  int64_t stride, count;
  bool has_bias;
  VecF bias;

  template <typename T>
  RTP_MEMBER Columns(const Tile<T>& tile, int i)
      : stride(tile.out_stride), has_bias(tile.bias != nullptr) {
    const int64_t column = i / kWidth * tile.apart + i % kWidth * kLanes;
    count = tile.outputs - column;
    bias = has_bias ? load_bias(tile.bias + column, count) : set1(0);
    out = static_cast<Out*>(tile.out) + column;
    residual = tile.residual ? static_cast<const Out*>(tile.residual) + column : nullptr;
  }

  // What a whole register of outputs gets.
  RTP_MEMBER VecF total(int64_t row, VecF sums) const {
    if (has_bias) sums = sums + bias;
    return residual ? load(residual + row * stride) + rounded<Out>(sums) : sums;
  }

  RTP_MEMBER void store_sums(int64_t row, VecF sums) const {
    const int64_t offset = row * stride;
    store_outputs(out + offset, residual ? residual + offset : nullptr,
                  has_bias ? sums + bias : sums, count);
  }
};

template <typename Out, int kWidth, int kRows, int kVectors, typename T>
RTP_INLINE void store_tile(const Tile<T>& tile, const Sums<kRows, kVectors>& sums) {
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; ++i) {
    const Columns<Out, kWidth> columns(tile, i);
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) columns.store_sums(row, sums[row][i]);
  }
}

template <int kRows, int kStrips, int kWidth, typename T>
__attribute__((noinline)) void multiply(const Tile<T>& tile) {
  constexpr int kVectors = kStrips * kWidth;
  constexpr int64_t kStepBytes = kStripOutputs * kDepth<T> * static_cast<int64_t>(sizeof(T));
  const Rows<Operand<T>> x(tile.x, tile.x_stride);
  const int64_t stream = tile.distance * tile.strip_elements;
  const T* weight = tile.weight;
  const char* ahead = tile.ahead;
  const char* const end = reinterpret_cast<const char*>(weight + tile.strip_elements);
  int64_t jump = tile.jump;
  const bool has_few_tiles = 3 * tile.ahead_step >= kStepBytes;
  Sums<kRows, kVectors> sums;
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) sums[row][i] = set1(0);
  }
  for (int64_t k = 0; k < tile.k; k += kDepth<T>) {
#pragma GCC unroll 2
    for (int strip = 0; strip < kStrips; ++strip) {
      const char* line = ahead + strip * stream * static_cast<int64_t>(sizeof(T));
      for (int64_t byte = 0; byte < kStepBytes; byte += 64) {
        if (has_few_tiles) {
          __builtin_prefetch(line + byte, 0, kFewTilesLocality);
        } else {
          __builtin_prefetch(line + byte);
        }
      }
    }
    ahead += tile.ahead_step;
    if (ahead >= end) {
      ahead += jump;
      jump = 0;
    }
    step<kWidth, kRows, kVectors>(sums, x, k, weight, stream);
    weight += kStripOutputs * kDepth<T>;
  }
  tile.out_dtype == DType::kBf16 ? store_tile<bf16, kWidth, kRows, kVectors>(tile, sums)
                                 : store_tile<float, kWidth, kRows, kVectors>(tile, sums);
}

template <int kRows, int kStrips, int kWidth, typename T>
void multiply_rows(const Tile<T>& tile, int64_t rows) {
  if (rows == kRows) {
    multiply<kRows, kStrips, kWidth>(tile);
  } else if constexpr (kRows > 1) {
    multiply_rows<kRows - 1, kStrips, kWidth>(tile, rows);
  }
}

// Any number of rows, the first of which are those of `tile`, as tiles of kRows at most: calls
// body(tile, its rows, its number). Several tiles fetch the next strip between them; a single one
// fetches its own.
//
// `tile` stays as it is: a copy of what has just been written in smaller pieces would wait until
// all stores of the tile before are in the cache.
template <int kRows, typename T, typename Body>
RTP_INLINE void each_tile(const Tile<T>& tile, int64_t rows, Body&& body) {
  const int64_t tiles = (rows + kRows - 1) / kRows;
  const int64_t strip_bytes = tile.strip_elements * static_cast<int64_t>(sizeof(T));
  const int64_t step_bytes = kStripOutputs * kDepth<T> * static_cast<int64_t>(sizeof(T));
  const char* strip = tile.coded ? tile.coded : reinterpret_cast<const char*>(tile.weight);
  const int64_t stored_bytes = tile.coded ? tile.coded_bytes : strip_bytes;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t row = rows * i / tiles, end = rows * (i + 1) / tiles;
    Tile<T> own = tile.below(row);
    own.ahead = strip + (tiles > 1 ? stored_bytes + stored_bytes * i / tiles : kPrefetchBytes);
    own.ahead_step = (tile.coded ? step_bytes * 3 / 4 : step_bytes) / tiles;
    body(own, end - row, i);
  }
}

template <int kStrips, int kWidth, typename T>
void multiply_tiles(const Tile<T>& tile, int64_t rows) {
  constexpr int kRows = kRowsOf<kStrips, kWidth>;
  each_tile<kRows>(tile, rows, [](const Tile<T>& own, int64_t count, int64_t) {
    multiply_rows<kRows, kStrips, kWidth>(own, count);
  });
}

}  // namespace rtp::RTP_ISA_NAMESPACE
