// Tiles of one sequence and kv head: where they lie in the cache, and copies of them in scratch.
//
// A copy has the layout of the cache with columns padded to whole registers and, where products
// are of floats, widened. `Units` are those that read the cache, `Copied` those that read a copy.
#pragma once

#include "attention_units.h"

namespace rtp::RTP_ISA_NAMESPACE {

template <typename Units, typename Copied>
class TileSource {
 public:
  static constexpr bool kIsWidened = Units::kElements != Copied::kElements;

  TileSource(const PagedAttention& op, int32_t seq, int32_t kv_head)
      : keys_(static_cast<const float*>(op.key_cache)),
        values_(static_cast<const float*>(op.value_cache)),
        blocks_(op.block_tables + seq * op.block_tables_stride),
        tile_words_(tile_words(op.dtype, op.geometry.head_dim)),
        block_words_(op.block_stride / word_elements(op.dtype)),
        head_offset_(kv_head * tile_words_),
        head_dim_(op.geometry.head_dim),
        columns_(padded(op.geometry.head_dim)) {}

  // Words of a token's keys in the cache, and in a copy.
  int key_words() const { return static_cast<int>(head_dim_) / Units::kElements; }
  int copied_key_words() const { return static_cast<int>(head_dim_) / Copied::kElements; }

  // Floats that the copies of a tile's keys, and of its values, take.
  int64_t copied_words() const { return kTileKeys * columns_ / Copied::kElements; }

  // Blocks [begin, end) of the tile at key `first`, which are the sequence's. The others, never
  // read, are said to be where block `begin` is.
  void find(int32_t first, int begin, int end, TileWords& tile) const {
    const int32_t* blocks = blocks_ + first / kBlockTokens;
    for (int i = 0; i < kTileBlocks; ++i) {
      const int64_t offset =
          blocks[i >= begin && i < end ? i : begin] * block_words_ + head_offset_;
      tile.keys[i] = keys_ + offset;
      tile.values[i] = values_ + offset;
    }
  }

  // Blocks [begin, end).
  void copy(const TileWords& tile, int begin, int end, const TileWords& copies) const {
    for (int i = begin; i < end; ++i) {
      copy_rows(tile.keys[i], key_words(), kBlockTokens, kBlockTokens, writable(copies.keys[i]));
      copy_rows(tile.values[i], kBlockTokens / Units::kElements, head_dim_, columns_,
                writable(copies.values[i]));
    }
  }

  // Where copies lie, given memory for keys and for values.
  TileWords copies_in(float* keys, float* values) const {
    TileWords copies;
    for (int i = 0; i < kTileBlocks; ++i) {
      copies.keys[i] = keys + i * copied_words() / kTileBlocks;
      copies.values[i] = values + i * copied_words() / kTileBlocks;
    }
    return copies;
  }

  // The token at `position` as key `key` of a copy.
  void copy_token(int32_t position, int key, const TileWords& copies) const {
    const int64_t offset = blocks_[position / kBlockTokens] * block_words_ + head_offset_;
    const int from = position % kBlockTokens, to = key % kBlockTokens;
    float* keys = writable(copies.keys[key / kBlockTokens]);
    for (int i = 0; i < head_dim_; ++i) {
      copy_element(keys_ + offset + i / Units::kElements * kBlockTokens + from,
                   i % Units::kElements, keys + i / Copied::kElements * kBlockTokens + to,
                   i % Copied::kElements);
    }
    float* values = writable(copies.values[key / kBlockTokens]);
    for (int i = 0; i < head_dim_; ++i) {
      copy_element(values_ + offset + from / Units::kElements * head_dim_ + i,
                   from % Units::kElements, values + to / Copied::kElements * columns_ + i,
                   to % Copied::kElements);
    }
  }

  // Asks for part `index` of `count` of the tile's blocks.
  void fetch(const TileWords& tile, int index, int count) const {
    constexpr int64_t kLine = 16;
    const int64_t begin = tile_words_ * index / count / kLine * kLine;
    const int64_t end = tile_words_ * (index + 1) / count;
    for (int i = 0; i < kTileBlocks; ++i) {
      for (int64_t word = begin; word < end; word += kLine) {
        __builtin_prefetch(tile.keys[i] + word);
        __builtin_prefetch(tile.values[i] + word);
      }
    }
  }

 private:
  // Copies are in this thread's scratch.
  static float* writable(const float* copy) { return const_cast<float*>(copy); }

  // `width` words a row, `stride` words a row of the copy.
  static void copy_rows(const float* words, int rows, int64_t width, int64_t stride, float* copy) {
    for (int row = 0; row < rows; ++row, words += width) {
      for (int64_t i = 0; i < width; i += kLanes) {
        const int64_t left = width - i;
        const VecF word =
            left < kLanes ? load_words(words + i, static_cast<int>(left)) : load(words + i);
        if constexpr (kIsWidened) {
          store(copy + i, even_bf16(word));
          store(copy + stride + i, odd_bf16(word));
        } else {
          store(copy + i, word);
        }
      }
      copy += kIsWidened ? 2 * stride : stride;
    }
  }

  // Element `half` of a word.
  static void copy_element(const float* word, int half, float* copy, int copy_half) {
    if constexpr (Units::kElements == 1) {
      *copy = *word;
    } else {
      uint16_t bits;
      __builtin_memcpy(&bits, reinterpret_cast<const char*>(word) + 2 * half, sizeof bits);
      if constexpr (kIsWidened) {
        const uint32_t wide = uint32_t{bits} << 16;
        __builtin_memcpy(copy, &wide, sizeof wide);
      } else {
        __builtin_memcpy(reinterpret_cast<char*>(copy) + 2 * copy_half, &bits, sizeof bits);
      }
    }
  }

  const float *keys_, *values_;
  const int32_t* blocks_;
  const int64_t tile_words_, block_words_, head_offset_;
  const int64_t head_dim_, columns_;
};

}  // namespace rtp::RTP_ISA_NAMESPACE
