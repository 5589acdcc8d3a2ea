// The tile registers of AMX: eight of 16 rows of 64 bytes.
//
//   floats     16 rows of 16: sums
//   left       16 rows of 32 bf16: what multiplies
//   right      16 rows of 16 words, two bf16 each, that lie one below the other: what is multiplied
//
// TDPBF16PS adds left · right to the sums. A row of them takes its products in one order, whatever
// the other rows hold, and zeros at the end of k leave it as it is. Subnormals count as zero.
#pragma once

#include "vec.h"

namespace rtp::RTP_ISA_NAMESPACE {

constexpr int kTileSide = 16;   // rows, and words of a row
constexpr int kTileDepth = 32;  // k that a product takes

// Configures them for the thread that makes this, and gives them up at its end: what is in use, the
// system has to save. Takes some 50 ns.
class TileRegisters {
 public:
  TileRegisters() {
    struct alignas(64) Configuration {
      uint8_t palette = 1, start_row = 0;
      uint8_t reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };
    static constexpr Configuration kWhole;
    _tile_loadconfig(&kWhole);
  }
  ~TileRegisters() { _tile_release(); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
};

// The compiler's own functions do not say that they read memory: it would put off what was stored
// there, or leave it out.
template <int kRegister>
RTP_INLINE void load_tile(const void* rows, int64_t row_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2"
               :
               : "r"(rows), "r"(row_bytes), "i"(kRegister)
               : "memory");
}

// The same of what is not soon read again: leaves the first-level cache to the rest.
template <int kRegister>
RTP_INLINE void load_passing_tile(const void* rows, int64_t row_bytes) {
  asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2"
               :
               : "r"(rows), "r"(row_bytes), "i"(kRegister)
               : "memory");
}

template <int kRegister>
RTP_INLINE void store_tile(void* rows, int64_t row_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)"
               :
               : "r"(rows), "r"(row_bytes), "i"(kRegister)
               : "memory");
}

// Registers 0 to 3, sums.
RTP_INLINE void clear_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// Adds the products of 4 and 5, if there are two tiles of rows, by 6 and 7.
template <int kRowTiles>
RTP_INLINE void add_products() {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  if constexpr (kRowTiles == 2) {
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

// Registers 4 and 5, if there are two tiles of rows, from rows `stride` elements apart.
template <int kRowTiles>
RTP_INLINE void load_rows(const bf16* rows, int64_t stride) {
  const int64_t bytes = stride * static_cast<int64_t>(sizeof(bf16));
  load_tile<4>(rows, bytes);
  if constexpr (kRowTiles == 2) load_tile<5>(rows + kTileSide * stride, bytes);
}

// Adds the products of 4, one tile of rows, by four tiles of columns.
RTP_INLINE void add_wide(const void* first, const void* second, const void* third,
                         const void* fourth, int64_t row_bytes) {
  load_tile<5>(first, row_bytes);
  load_tile<6>(second, row_bytes);
  load_tile<7>(third, row_bytes);
  _tile_dpbf16ps(0, 4, 5);
  load_tile<5>(fourth, row_bytes);
  _tile_dpbf16ps(1, 4, 6);
  _tile_dpbf16ps(2, 4, 7);
  _tile_dpbf16ps(3, 4, 5);
}
RTP_INLINE void store_wide(float* target, int64_t stride) {
  const int64_t bytes = stride * static_cast<int64_t>(sizeof(float));
  store_tile<0>(target, bytes);
  store_tile<1>(target + kTileSide, bytes);
  store_tile<2>(target + 2 * kTileSide, bytes);
  store_tile<3>(target + 3 * kTileSide, bytes);
}

// Rows `stride` floats apart; the second half of the columns lies `second` floats behind the first.
template <int kRowTiles>
RTP_INLINE void store_sums(float* target, int64_t stride, int64_t second) {
  const int64_t bytes = stride * static_cast<int64_t>(sizeof(float));
  store_tile<0>(target, bytes);
  store_tile<1>(target + second, bytes);
  if constexpr (kRowTiles == 2) {
    store_tile<2>(target + kTileSide * stride, bytes);
    store_tile<3>(target + kTileSide * stride + second, bytes);
  }
}
RTP_INLINE void load_sums(const float* source, int64_t stride, int64_t second) {
  const int64_t bytes = stride * static_cast<int64_t>(sizeof(float));
  load_tile<0>(source, bytes);
  load_tile<1>(source + second, bytes);
  load_tile<2>(source + kTileSide * stride, bytes);
  load_tile<3>(source + kTileSide * stride + second, bytes);
}

}  // namespace rtp::RTP_ISA_NAMESPACE
