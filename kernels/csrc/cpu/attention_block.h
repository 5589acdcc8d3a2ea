// Some rows of a query tile with one tile of keys: scores, weights, weighted values.
#pragma once

#include "attention_rows.h"
#include "attention_units.h"

namespace rtp::RTP_ISA_NAMESPACE {

// Blocks of a tile that hold these of its keys.
RTP_INLINE KeyRange blocks_of(KeyRange seen) {
  return {seen.begin / kBlockTokens, (seen.end + kBlockTokens - 1) / kBlockTokens};
}

template <typename Units>
class RowBlock {
  using Weight = typename Units::Weight;

 public:
  // Rows [row, end), at most kBlockRows, with the tile at key `first`. `scores` and `weights` hold
  // kTileKeys a row.
  void take(const TileRows& rows, int32_t first, int32_t row, int32_t end, float* scores,
            Weight* weights) {
    rows_ = &rows;
    row_ = row;
    count_ = end - row;
    scores_ = scores;
    weights_ = weights;
    seen_ = {kTileKeys, 0};
    shared_ = {0, kTileKeys / Units::kElements};
    for (int32_t r = 0; r < count_; ++r) {
      const KeyRange range = rows.ranges[(row + r) / rows.group].within(first, kTileKeys);
      ranges_[r] = range;
      shared_ = shared_.shared(whole_words(range));
      if (!range.is_empty()) seen_ = seen_.joined(range);
    }
  }

  void score(const TileWords& tile, const TileWords& ahead) {
    if (seen_.is_empty()) return;
    const ScoreProduct product{rows_->queries + row_ * rows_->columns,
                               rows_->columns,
                               static_cast<int>(rows_->head_dim) / Units::kElements,
                               tile,
                               ahead,
                               scores_};
    const KeyRange blocks = blocks_of(seen_);
    multiply<Units>(count_, product, blocks.begin * kBlockTokens, blocks.end * kBlockTokens);
  }

  void weigh() {
    for (int32_t r = 0; r < count_; ++r) {
      if (ranges_[r].is_empty()) continue;
      RTP_ISA_NAMESPACE::weigh(rows_->states[row_ + r], scores_ + r * kTileKeys, ranges_[r],
                               rows_->scale, weights_ + r * kTileKeys, accumulators(r),
                               rows_->columns);
    }
  }

  // Each row's values in ascending order: what lies before the words that all rows see whole,
  // those, and what lies behind.
  void add_values(const TileWords& tile, const TileWords& ahead) {
    const bool has_shared = !shared_.is_empty();
    for (int32_t r = 0; r < count_; ++r) {
      const KeyRange range = ranges_[r];
      if (range.is_empty()) continue;
      if (range.begin % Units::kElements) add_half<1>(r, range.begin, tile);
      if (has_shared) add_words(r, 1, {whole_words(range).begin, shared_.begin}, tile, tile);
    }
    if (has_shared) add_words(0, count_, shared_, tile, ahead);
    for (int32_t r = 0; r < count_; ++r) {
      const KeyRange range = ranges_[r], words = whole_words(range);
      if (range.is_empty()) continue;
      add_words(r, 1, {has_shared ? shared_.end : words.begin, words.end}, tile, tile);
      if (range.end % Units::kElements) add_half<0>(r, range.end - 1, tile);
    }
  }

 private:
  float* accumulators(int32_t r) const { return rows_->accumulators + (row_ + r) * rows_->columns; }
  const float* weight_words(int32_t r) const {
    return reinterpret_cast<const float*>(weights_) + r * kWeightStride<Units>;
  }

  // Words of values whose elements are all in `range`.
  static KeyRange whole_words(KeyRange range) {
    return {(range.begin + Units::kElements - 1) / Units::kElements, range.end / Units::kElements};
  }

  // Of rows [r, r + count).
  void add_words(int32_t r, int32_t count, KeyRange words, const TileWords& tile,
                 const TileWords& ahead) {
    if (words.is_empty()) return;
    const ValueProduct product{weight_words(r), tile,           ahead,       rows_->columns,
                               accumulators(r), rows_->columns, words.begin, words.end};
    multiply<Units>(count, product, 0, static_cast<int>(rows_->columns));
  }

  // One element of a word whose other element the row does not see.
  template <int kElement>
  void add_half(int32_t r, int32_t key, const TileWords& tile) {
    if constexpr (Units::kElements == 2) {
      const int word = key / 2, row = word % kBlockValues<Units>;
      const float* values = tile.values[word / kBlockValues<Units>] + row * rows_->columns;
      constexpr int kOperand = Units::kOperands == 2 ? kElement : 0;
      const VecF weight = set1(weight_words(r)[word * Units::kOperands + kOperand]);
      for (int64_t c = 0; c < rows_->columns; c += kLanes) {
        const VecF half = Units::template half<kElement>(values + c);
        float* const sums = accumulators(r) + c;
        store(sums, Units::mac(load(sums), weight, half));
      }
    }
  }

  const TileRows* rows_;
  int32_t row_, count_;
  float* scores_;
  Weight* weights_;
  KeyRange ranges_[kBlockRows];  // seen of the tile
  KeyRange seen_;                // by any row
  KeyRange shared_;              // by all rows: words of values
};

}  // namespace rtp::RTP_ISA_NAMESPACE
