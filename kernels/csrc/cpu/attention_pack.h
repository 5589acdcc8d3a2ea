// Keys and values of one tile, out of the paged cache into the order that the block sums read.
//
//   keys     [head_dim units][kTileKeys]          a register holds one unit of kLanes keys
//   values   [kTileKeys units][padded(head_dim)]  a register holds kLanes columns of one unit
//
// Keys outside [begin, end) are zero there: the cache is not read.
#pragma once

#include <utility>

#include "attention.h"
#include "attention_units.h"

namespace rtp::RTP_ISA_NAMESPACE {

// Rows of a tile in the cache: offsets in elements, -1 for a key that is not read.
struct TileOffsets {
  int64_t of[kTileKeys];
};

// Where the keys of one sequence and kv head are.
struct KeyMap {
  const int32_t* blocks;  // the sequence's block table
  int64_t block_size;
  int64_t block_stride;  // elements from block to block
  int64_t head_offset;   // elements from a block's start to this head's rows
  int64_t head_dim;

  int64_t row(int64_t key) const {
    return blocks[key / block_size] * block_stride + head_offset + key % block_size * head_dim;
  }

  // Keys [begin, end) of the tile that starts at key `first`; no others.
  void find(int64_t first, int64_t begin, int64_t end, TileOffsets& tile) const {
    for (int64_t& offset : tile.of) offset = -1;
    for (int64_t key = begin; key < end;) {
      int64_t offset = row(key);
      const int64_t next_block = key + block_size - key % block_size;
      const int64_t stop = next_block < end ? next_block : end;
      for (; key < stop; ++key, offset += head_dim) tile.of[key - first] = offset;
    }
  }
};

template <int kStep, int... kLane>
RTP_INLINE void exchange(VecF& a, VecF& b, std::integer_sequence<int, kLane...>) {
  const VecF low =
      __builtin_shufflevector(a, b, (kLane & kStep ? kLane - kStep + kLanes : kLane)...);
  const VecF high =
      __builtin_shufflevector(a, b, (kLane & kStep ? kLane + kLanes : kLane + kStep)...);
  a = low;
  b = high;
}

// Square of kLanes registers; each stage swaps the off-diagonal squares of side kStep.
template <int kStep = kLanes / 2>
RTP_INLINE void transpose(VecF (&rows)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (!(i & kStep)) {
      exchange<kStep>(rows[i], rows[i + kStep], std::make_integer_sequence<int, kLanes>());
    }
  }
  if constexpr (kStep > 1) transpose<kStep / 2>(rows);
}

// Asks for the rows [begin, begin + count) of the tile that comes next.
template <typename T>
RTP_INLINE void prefetch(const T* cache, const TileOffsets& next, int begin, int count,
                         int64_t head_dim) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int key = begin; key < begin + count; ++key) {
    if (next.of[key] < 0) continue;
    for (int64_t i = 0; i < head_dim; i += kLine) __builtin_prefetch(cache + next.of[key] + i);
  }
}

// Squares of kLanes keys by kLanes words of four bytes are transposed, then taken apart into units.
template <typename Units>
void pack_keys(const typename Units::Element* cache, const TileOffsets& tile,
               const TileOffsets& next, int64_t head_dim, float* packed) {
  constexpr int kWordElements = 4 / sizeof(typename Units::Element);
  const int words = static_cast<int>(head_dim) / kWordElements;
  for (int group = 0; group < kTileKeys; group += kLanes) {
    prefetch(cache, next, group, kLanes, head_dim);
    for (int first = 0; first < words; first += kLanes) {
      const int count = words - first < kLanes ? words - first : kLanes;
      VecF rows[kLanes];
#pragma GCC unroll 16
      for (int lane = 0; lane < kLanes; ++lane) {
        const int64_t offset = tile.of[group + lane];
        rows[lane] =
            offset < 0 ? set1(0.0f) : load_words(cache + offset + first * kWordElements, count);
      }
      transpose(rows);
#pragma GCC unroll 16
      for (int word = 0; word < kLanes; ++word) {
        constexpr int kWordFloats = kWordElements / Units::kElements * kTileKeys;
        if (word < count) {
          Units::store_word(packed + (first + word) * kWordFloats + group, kTileKeys, rows[word]);
        }
      }
    }
  }
}

template <typename Units>
void pack_values(const typename Units::Element* cache, const TileOffsets& tile,
                 const TileOffsets& next, int64_t head_dim, float* packed) {
  const int64_t columns = padded(head_dim);
  for (int key = 0; key < kTileKeys; key += Units::kElements) {
    prefetch(cache, next, key, Units::kElements, head_dim);
    const int64_t even = tile.of[key], odd = tile.of[key + Units::kElements - 1];
    float* row = packed + key / Units::kElements * columns;
    if (even < 0 && odd < 0) continue;
    for (int64_t column = 0; column < columns; column += kLanes) {
      const int64_t left = head_dim - column;
      const int count = static_cast<int>(left < 0 ? 0 : left < kLanes ? left : kLanes);
      store(row + column, Units::zip(even < 0 ? nullptr : cache + even + column,
                                     odd < 0 ? nullptr : cache + odd + column, count));
    }
  }
}

}  // namespace rtp::RTP_ISA_NAMESPACE
