// A partition of one sequence's keys and values, as tile registers take them.
//
// Keys are read as they lie in the cache, values from a copy: a product takes 32 of them, two
// blocks, one below the other. The copy is zero where nobody looks, so that zero weights add
// nothing.
#pragma once

#include "attention_rows.h"
#include "scratch.h"
#include "tile_registers.h"

namespace rtp::RTP_ISA_NAMESPACE {

constexpr int kPartitionBlocks = kPartitionKeys / kBlockTokens;
constexpr int kProductBlocks = kTileDepth / kBlockTokens;  // of values
static_assert(kBlockTokens == kTileSide);

// One sequence's keys and values under one kv head, in the cache.
class CachedHead {
 public:
  CachedHead(const PagedAttention& op, const QueryTile& tile)
      : keys_(static_cast<const float*>(op.key_cache)),
        values_(static_cast<const float*>(op.value_cache)),
        blocks_(op.block_tables + tile.seq * op.block_tables_stride),
        tile_words_(tile_words(op.dtype, op.geometry.head_dim)),
        block_words_(op.block_stride / word_elements(op.dtype)),
        head_offset_(tile.kv_head * tile_words_) {}

  // Of block `index` of the sequence, in words.
  const float* keys(int32_t index) const { return keys_ + offset(index); }
  const float* values(int32_t index) const { return values_ + offset(index); }

 private:
  int64_t offset(int32_t index) const { return blocks_[index] * block_words_ + head_offset_; }

  const float *keys_, *values_;
  const int32_t* blocks_;
  const int64_t tile_words_, block_words_, head_offset_;
};

class Partition {
 public:
  Partition(const PagedAttention& op, const QueryTile& tile)
      : head_(op, tile),
        head_dim_(op.geometry.head_dim),
        depth_((head_dim_ + kTileDepth - 1) / kTileDepth * kTileDepth),
        columns_(padded(head_dim_)) {}

  int64_t depth() const { return depth_; }      // head_dim, up to whole products
  int64_t columns() const { return columns_; }  // head_dim, up to whole registers

  void take(Pieces& pieces) {
    pieces.take(copied_keys_, kPartitionKeys * depth_ / 2);
    pieces.take(values_, kPartitionKeys / 2 * columns_);
  }

  // Of block `index`, in words [depth / 2][16 tokens].
  const float* keys(int index) const { return keys_[index]; }

  // Of the keys of product `index`, in words [16 pairs of tokens][columns].
  const float* values(int index) const { return values_ + index * kTileDepth / 2 * columns_; }

  // The keys and values in `seen`, of the partition at key `first`.
  void read(int32_t first, KeyRange seen) {
    const int32_t block = first / kBlockTokens, begin = seen.begin / kBlockTokens;
    for (int i = 0; i < kPartitionBlocks; ++i) {
      const bool is_seen = i >= begin && i * kBlockTokens < seen.end;
      // Nobody reads the scores of a block that is not: say that it is where the first one is.
      keys_[i] = head_.keys(block + (is_seen ? i : begin));
      if (depth_ != head_dim_) copy_keys(i);
    }
    copy_values(block, seen);
  }

  // The keys in `before`, and nothing else; copy_token() gives others.
  void read_copies(int32_t first, KeyRange before) {
    const int32_t block = first / kBlockTokens;
    for (int i = 0; i < kPartitionBlocks; ++i) {
      const bool is_seen = i >= before.begin / kBlockTokens && i * kBlockTokens < before.end;
      if (is_seen) keys_[i] = head_.keys(block + i);
      is_seen ? copy_keys(i) : clear_keys(i);
    }
    clear(values_, kPartitionKeys / 2 * columns_);
    if (!before.is_empty()) copy_values(block, before);
  }

  // The token at `position` as key `key` of the copies.
  void copy_token(int32_t position, int32_t key) {
    const int from = position % kBlockTokens, to = key % kBlockTokens;
    const float* keys = head_.keys(position / kBlockTokens) + from;
    float* copy = copied_keys(key / kBlockTokens) + to;
    for (int64_t word = 0; word < key_words(); word += kBlockTokens) copy[word] = keys[word];
    const float* values = head_.values(position / kBlockTokens) + from / 2 * head_dim_;
    const auto* halves = reinterpret_cast<const bf16*>(values) + from % 2;
    auto* target = reinterpret_cast<bf16*>(values_ + key / 2 * columns_) + key % 2;
    for (int64_t c = 0; c < head_dim_; ++c) target[2 * c] = halves[2 * c];
  }

 private:
  // Of a block in the cache.
  int64_t key_words() const { return head_dim_ / 2 * kBlockTokens; }
  float* copied_keys(int index) const { return copied_keys_ + index * depth_ / 2 * kBlockTokens; }

  static void clear(float* words, int64_t count) {
    for (int64_t i = 0; i < count; i += kLanes) store(words + i, set1(0.0f));
  }
  static void copy(float* to, const float* from, int64_t count) {
    for (int64_t i = 0; i < count; i += kLanes) store(to + i, load(from + i));
  }

  // Zero beyond head_dim.
  void copy_keys(int index) {
    copy(copied_keys(index), keys_[index], key_words());
    clear(copied_keys(index) + key_words(), depth_ / 2 * kBlockTokens - key_words());
    keys_[index] = copied_keys(index);
  }
  void clear_keys(int index) {
    clear(copied_keys(index), depth_ / 2 * kBlockTokens);
    keys_[index] = copied_keys(index);
  }

  // Zero for keys that are not `seen` in the products of those that are.
  void copy_values(int32_t block, KeyRange seen) {
    const int32_t begin = seen.begin / kTileDepth * kProductBlocks;
    const int32_t end = (seen.end + kTileDepth - 1) / kTileDepth * kProductBlocks;
    constexpr int kPairs = kBlockTokens / 2;
    for (int32_t i = begin; i < end; ++i) {
      const KeyRange own = seen.within(i * kBlockTokens, kBlockTokens);
      float* target = values_ + i * kPairs * columns_;
      if (own.is_empty()) {
        clear(target, kPairs * columns_);
      } else if (columns_ == head_dim_ && own.end - own.begin == kBlockTokens) {
        copy(target, head_.values(block + i), kPairs * columns_);
      } else {
        copy_tokens(head_.values(block + i), own, target);
      }
    }
  }

  // Of a block's values, tokens [own.begin, own.end).
  void copy_tokens(const float* values, KeyRange own, float* target) const {
    const auto kept = [&](int token, uint32_t half) {
      return token >= own.begin && token < own.end ? half : 0;
    };
    for (int token = 0; token < kBlockTokens; token += 2) {
      const uint32_t halves = kept(token, 0xffffu) | kept(token + 1, 0xffff0000u);
      const __m512i mask = _mm512_set1_epi32(static_cast<int>(halves));
      for (int64_t c = 0; c < columns_; c += kLanes) {
        const int left = static_cast<int>(head_dim_ - c);
        const VecF words = left < kLanes ? load_words(values + c, left) : load(values + c);
        _mm512_storeu_si512(target + c, _mm512_and_si512(_mm512_castps_si512(words), mask));
      }
      values += head_dim_;
      target += columns_;
    }
  }

  const CachedHead head_;
  const int64_t head_dim_, depth_, columns_;
  const float* keys_[kPartitionBlocks];
  float *copied_keys_, *values_;
};

}  // namespace rtp::RTP_ISA_NAMESPACE
