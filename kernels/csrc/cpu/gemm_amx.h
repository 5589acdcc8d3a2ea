// Tiles of a product with sums in the tile registers of AMX.
//
//   multiply_few     at most 16 rows of a strip, or of two
//   multiply_strip   any number of rows of a strip
//   multiply_gated   the same of two strips that make one output (Epilogue::kSiluAndMul)
#pragma once

#include "activation_row.h"
#include "gemm_tile.h"

namespace rtp::RTP_ISA_NAMESPACE {

// Sums of a tile outside the tile registers: 32 rows of 32.
constexpr int64_t kSumColumns = 2 * kTileSide;
constexpr int64_t kTileSums = 2 * kTileSide * kSumColumns;
static_assert(kSumColumns == kStripOutputs);

// As much k of a strip as stays in the first-level cache while rows pass by.
constexpr int64_t kPartDepth = 576;

template <typename Out, int kStrips>
RTP_INLINE void store_outputs_of(const Tile<bf16>& tile, const float* sums, int64_t rows) {
#pragma GCC unroll 4
  for (int i = 0; i < 2 * kStrips; ++i) {
    const Columns<Out> columns(tile, i);
    // Two strips lie one below the other, each with 16 rows.
    const float* from = sums + i / 2 * kTileSide * kSumColumns + i % 2 * kTileSide;
    for (int64_t row = 0; row < rows; ++row) {
      columns.store_sums(row, load(from + row * kSumColumns));
    }
  }
}

template <int kStrips>
RTP_INLINE void store_tile(const Tile<bf16>& tile, const float* sums, int64_t rows) {
  tile.out_dtype == DType::kBf16 ? store_outputs_of<bf16, kStrips>(tile, sums, rows)
                                 : store_outputs_of<float, kStrips>(tile, sums, rows);
}

// One product of all registers: sums 0 to 3 of two halves of rows, or two strips, by two halves of
// a strip's outputs; 4 and 5 hold x, 6 and 7 weights. With two halves of rows, weights are what
// stays in the first-level cache, and x goes past it.
template <int kRowTiles, int kStrips>
RTP_INLINE void multiply_depth(const bf16* x, int64_t x_stride, const bf16* weight,
                               int64_t stream) {
  constexpr int64_t kWeightBytes = kStripOutputs * 2 * sizeof(bf16);
  const int64_t x_bytes = x_stride * static_cast<int64_t>(sizeof(bf16));
  if constexpr (kRowTiles == 2) {
    load_passing_tile<4>(x, x_bytes);
    load_passing_tile<5>(x + kTileSide * x_stride, x_bytes);
  } else {
    load_tile<4>(x, x_bytes);
  }
  load_tile<6>(weight, kWeightBytes);
  load_tile<7>(weight + 2 * kTileSide, kWeightBytes);
  add_products<kRowTiles>();
  if constexpr (kStrips == 2) {
    load_tile<6>(weight + stream, kWeightBytes);
    load_tile<7>(weight + stream + 2 * kTileSide, kWeightBytes);
    _tile_dpbf16ps(2, 4, 6);
    _tile_dpbf16ps(3, 4, 7);
  }
}

// The last `depth` < kTileDepth of k, with zeros below: what follows a strip is another's.
template <int kRowTiles, int kStrips>
void multiply_rest(const bf16* x, int64_t x_stride, const bf16* weight, int64_t stream,
                   int64_t depth) {
  constexpr int64_t kElements = kTileDepth * kStripOutputs;
  alignas(64) bf16 rest[kStrips][kElements] = {};
  const int64_t bytes = (depth + 1) / 2 * 2 * kStripOutputs * static_cast<int64_t>(sizeof(bf16));
  for (int i = 0; i < kStrips; ++i) __builtin_memcpy(rest[i], weight + i * stream, bytes);
  multiply_depth<kRowTiles, kStrips>(x, x_stride, rest[0], kElements);
}

// Adds k from `begin` to `end`, of which only the last may be no multiple of kTileDepth. Calls
// beside() with each product: vector registers have nothing to do meanwhile.
template <int kRowTiles, int kStrips, typename Beside>
RTP_INLINE void multiply_part(const Tile<bf16>& tile, const bf16* x, int64_t begin, int64_t end,
                              Beside&& beside) {
  const int64_t stream = tile.distance * tile.strip_elements;
  const bf16* weight = tile.weight + begin * kStripOutputs;
  [[maybe_unused]] const char* end_of_strip =
      reinterpret_cast<const char*>(tile.weight + tile.strip_elements);
  int64_t k = begin;
  for (; k + kTileDepth <= end; k += kTileDepth, weight += kTileDepth * kStripOutputs) {
    if constexpr (kRowTiles == 1) {
      constexpr int64_t kStepBytes = kTileDepth * kStripOutputs * sizeof(bf16);
      const char* ahead = reinterpret_cast<const char*>(weight) + kPrefetchBytes;
      if (ahead >= end_of_strip) ahead += tile.jump;
      for (int64_t byte = 0; byte < kStepBytes; byte += 64) {
        __builtin_prefetch(ahead + byte);
        if constexpr (kStrips == 2) __builtin_prefetch(ahead + stream * sizeof(bf16) + byte);
      }
    }
    multiply_depth<kRowTiles, kStrips>(x + k, tile.x_stride, weight, stream);
    beside();
  }
  if (k < end) multiply_rest<kRowTiles, kStrips>(x + k, tile.x_stride, weight, stream, end - k);
}

// At most 16 rows: weights come from memory, and nothing else matters.
template <int kStrips>
__attribute__((noinline)) void multiply_few(const Tile<bf16>& tile, int64_t rows) {
  alignas(64) float sums[kTileSums];
  clear_sums();
  multiply_part<1, kStrips>(tile, tile.x, 0, tile.k, [] {});
  store_sums<kStrips>(sums, kSumColumns, kTileSide);
  store_tile<kStrips>(tile, sums, rows);
}

// Rows of a strip's sums [rows][32] on their way to the outputs.
template <typename Out>
class SumRows {
 public:
  RTP_MEMBER SumRows(const Tile<bf16>& first, const float* sums)
      : left_(first, 0), right_(first, 1), sums_(sums) {}

  // At most `count` more of the rows before `end`.
  RTP_MEMBER void store(int64_t count, int64_t end) {
    const int64_t stop = next_ + count < end ? next_ + count : end;
    for (; next_ < stop; ++next_) {
      const float* sums = sums_ + next_ * kSumColumns;
      if constexpr (sizeof(Out) == sizeof(bf16)) {
        if (right_.count >= kLanes) {
          store_pair(left_.out + next_ * left_.stride, left_.total(next_, load(sums)),
                     right_.total(next_, load(sums + kTileSide)));
          continue;
        }
      }
      left_.store_sums(next_, load(sums));
      right_.store_sums(next_, load(sums + kTileSide));
    }
  }

 private:
  const Columns<Out> left_, right_;
  const float* const sums_;
  int64_t next_ = 0;
};

// The same of two strips whose outputs become one (Epilogue::kSiluAndMul).
class GatedRows {
 public:
  RTP_MEMBER GatedRows(const Tile<bf16>& gate, const float* gates, const Tile<bf16>& up,
                       const float* ups)
      : gate_left_(gate, 0),
        gate_right_(gate, 1),
        up_left_(up, 0),
        up_right_(up, 1),
        gates_(gates),
        ups_(ups) {}

  RTP_MEMBER void store(int64_t count, int64_t end) {
    const int64_t stop = next_ + count < end ? next_ + count : end;
    for (; next_ < stop; ++next_) {
      const int64_t sums = next_ * kSumColumns;
      store_pair(gate_left_.out + next_ * gate_left_.stride, one(gate_left_, up_left_, sums),
                 one(gate_right_, up_right_, sums + kTileSide));
    }
  }

 private:
  RTP_MEMBER VecF one(const Columns<bf16>& gate, const Columns<bf16>& up, int64_t sums) const {
    return gated(round_to_bf16(gate.total(next_, load(gates_ + sums))),
                 round_to_bf16(up.total(next_, load(ups_ + sums))));
  }

  const Columns<bf16> gate_left_, gate_right_, up_left_, up_right_;
  const float *const gates_, *const ups_;
  int64_t next_ = 0;
};

// Of k, cut into parts of a strip that stay in the first-level cache.
struct KParts {
  int64_t depths, count, k;

  RTP_MEMBER explicit KParts(int64_t k_)
      : depths((k_ + kTileDepth - 1) / kTileDepth),
        count((k_ + kPartDepth - 1) / kPartDepth),
        k(k_) {}

  RTP_MEMBER int64_t begin(int64_t part) const {
    return part < count ? depths * part / count * kTileDepth : k;
  }
};

// Part `part` of k for all rows of a strip. Between parts sums wait in `sums`, [rows, up to whole
// tiles][32]. Calls beside(row) with each product for the rows from `row` on.
template <typename Beside>
RTP_INLINE void multiply_rows_part(const Tile<bf16>& tile, int64_t rows, float* sums,
                                   const KParts& parts, int64_t part, Beside&& beside) {
  constexpr int64_t kRows = 2 * kTileSide;
  const int64_t begin = parts.begin(part), end = parts.begin(part + 1);
  for (int64_t row = 0; row < rows; row += kRows) {
    float* own = sums + row * kSumColumns;
    begin ? load_sums(own, kSumColumns, kTileSide) : clear_sums();
    multiply_part<2, 1>(tile, tile.x + row * tile.x_stride, begin, end, [&] { beside(row); });
    store_sums<2>(own, kSumColumns, kTileSide);
  }
}

// All parts but the last.
inline __attribute__((noinline)) void multiply_first_parts(const Tile<bf16>& tile, int64_t rows,
                                                           float* sums, const KParts& parts) {
  for (int64_t p = 0; p + 1 < parts.count; ++p) {
    multiply_rows_part(tile, rows, sums, parts, p, [](int64_t) {});
  }
}

// The last part; each tile's sums leave beside the products of the next one.
template <typename Outputs>
RTP_INLINE void multiply_last_part(const Tile<bf16>& tile, int64_t rows, float* sums,
                                   const KParts& parts, Outputs outputs) {
  const int64_t products = (parts.k - parts.begin(parts.count - 1)) / kTileDepth;
  const int64_t rows_each = (2 * kTileSide + products) / (products + 1) + 1;
  multiply_rows_part(tile, rows, sums, parts, parts.count - 1,
                     [&](int64_t row) { outputs.store(rows_each, row); });
  outputs.store(rows, rows);
}

// Any number of rows of one strip, whose first tile is `tile`. `sums` has room for [rows, up to
// whole tiles][32].
inline __attribute__((noinline)) void multiply_strip(const Tile<bf16>& tile, int64_t rows,
                                                     float* sums) {
  const KParts parts(tile.k);
  multiply_first_parts(tile, rows, sums, parts);
  if (tile.out_dtype == DType::kBf16) {
    multiply_last_part(tile, rows, sums, parts, SumRows<bf16>(tile, sums));
  } else {
    multiply_last_part(tile, rows, sums, parts, SumRows<float>(tile, sums));
  }
}

// The same of two strips, gates and what they open for. `sums` has room for both.
inline __attribute__((noinline)) void multiply_gated(const Tile<bf16>& gate, const Tile<bf16>& up,
                                                     int64_t rows, float* sums) {
  const KParts parts(gate.k);
  float* ups = sums + (rows + 2 * kTileSide - 1) / (2 * kTileSide) * kTileSums;
  multiply_first_parts(gate, rows, sums, parts);
  multiply_rows_part(gate, rows, sums, parts, parts.count - 1, [](int64_t) {});
  multiply_first_parts(up, rows, ups, parts);
  multiply_last_part(up, rows, ups, parts, GatedRows(gate, sums, up, ups));
}

}  // namespace rtp::RTP_ISA_NAMESPACE
