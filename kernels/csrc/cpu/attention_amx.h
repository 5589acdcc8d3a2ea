// Attention of bf16 by tile registers, a partition of keys at a time.
//
//   scores    [rows][256]      queries · keysᵀ
//   weights   [rows][256]      2^(score - the row's maximum) in bf16; zero for keys it does not see
//   sums      [rows][columns]  weights · values
//
// A row's maximum is over all that it sees of the partition, so there is nothing to rescale. A zero
// weight adds nothing, unless the value that it meets is not finite: then sums are not finite, and
// the rows are done again token by token, each with no values but its own.
#pragma once

#include "attention_partition.h"
#include "attention_query.h"

namespace rtp::RTP_ISA_NAMESPACE {

// 2^x for x <= 0: relative error below 2^-12, which rounding to bf16 hides. 2^0 is exactly 1, 0
// below -126, NaN of NaN.
RTP_INLINE VecF weight_of(VecF x) {
  const VecF shifter = set1(12582912.0f);  // 1.5 * 2^23: the sum's last bits are the integer
  const VecF shifted = x + shifter;
  const VecF f = x - (shifted - shifter);
  VecF p = set1(5.34267500e-2f);
  p = fma(p, f, set1(2.41876450e-1f));
  p = fma(p, f, set1(6.93458770e-1f));
  p = fma(p, f, set1(1.0f));
  const __mmask16 kept = _mm512_cmp_ps_mask(x, set1(-126.0f), _CMP_NLT_UQ);
  const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
  return _mm512_castsi512_ps(_mm512_maskz_add_epi32(kept, _mm512_castps_si512(p), exponent));
}

class PartitionRun {
 public:
  PartitionRun(const PagedAttention& op, const QueryTile& tile)
      : query_(op, tile),
        words_(op, tile),
        head_dim_(op.geometry.head_dim),
        depth_(words_.depth()),
        columns_(words_.columns()),
        scale_(op.scale * kLog2E) {}

  static void merge(const PagedAttention& op, const QueryTile& tile) {
    TileQuery<bf16>(op, tile).merge();
  }

  void attend(const Span& span) {
    Pieces needed(nullptr);
    take(needed);
    Pieces pieces(thread_scratch(needed.floats()));
    take(pieces);
    load_queries();
    for (int32_t p = span.partition_begin; p < span.partition_end; ++p) attend_partition(p);
    if (query_.partials) return;
    for (int32_t row = 0; row < query_.rows; ++row) {
      total(row).write(query_.out(row), head_dim_);
    }
  }

 private:
  static constexpr int kRows = 2 * kTileSide;  // of a block of rows
  // Rows apart by some cache lines more than a power of two: otherwise they share few sets.
  static constexpr int64_t kScoreStride = kPartitionKeys + 16;
  static constexpr int64_t kWeightStride = kPartitionKeys + 32;
  static constexpr int64_t kWeightBytes = kWeightStride * sizeof(bf16);

  struct RowBlock {
    int32_t partition, first;  // its first key
    int32_t row, count;
    KeyRange products;  // that any of the rows sees keys of
    bool is_checked;    // whether the values are of one token's keys alone
  };

  // Of a block's rows.
  struct alignas(64) Softmax {
    float maxima[kRows], sums[kRows];
  };

  void take(Pieces& pieces) {
    words_.take(pieces);
    pieces.take(scores_, kRows * kScoreStride);
    pieces.take(weights_, kRows * kWeightStride);
    pieces.take(sums_, kRows * columns_);
    pieces.take(queries_, (query_.rows + kRows) * depth_);  // a block reads whole registers
    pieces.take(totals_, query_.rows * partial_floats(head_dim_));
    pieces.take(ranges_, query_.rows);
  }

  PartialRow total(int32_t row) const {
    return {totals_ + row * partial_floats(head_dim_), columns_};
  }

  void load_queries() {
    for (int32_t row = 0; row < query_.rows; ++row) {
      ranges_[row] = row % query_.group ? ranges_[row - 1] : query_.range_of(row / query_.group);
      bf16* target = queries_ + row * depth_;
      __builtin_memcpy(target, query_.query(row), head_dim_ * sizeof(bf16));
      for (int64_t i = head_dim_; i < depth_; ++i) target[i] = bf16{};
    }
  }

  // What a row sees of the partition at key `first`.
  KeyRange seen_of(int32_t first, int32_t row) const {
    return ranges_[row].within(first, kPartitionKeys);
  }
  // What any of rows [row, end) sees.
  KeyRange seen_by(int32_t first, int32_t row, int32_t end) const {
    KeyRange seen{kPartitionKeys, 0};
    for (; row < end; ++row) {
      const KeyRange own = seen_of(first, row);
      if (!own.is_empty()) seen = seen.joined(own);
    }
    return seen;
  }

  void attend_partition(int32_t partition) {
    const int32_t first = partition * kPartitionKeys;
    const KeyRange seen = seen_by(first, 0, query_.rows);
    if (seen.is_empty()) return;
    if (query_.has_tree && first + kPartitionKeys > query_.context) {
      return attend_tokens(partition, 0, query_.rows);
    }
    words_.read(first, seen);
    for (int32_t row = 0; row < query_.rows; row += kRows) {
      const int32_t end = query_.rows - row < kRows ? query_.rows : row + kRows;
      if (attend_rows(partition, row, end, false)) continue;
      attend_tokens(partition, row, end);
      words_.read(first, seen);
    }
  }

  // Rows [row, end), those of each token with its own keys and values alone.
  void attend_tokens(int32_t partition, int32_t row, int32_t end) {
    const int32_t first = partition * kPartitionKeys;
    while (row < end) {
      const int32_t token = row / query_.group, next = (token + 1) * query_.group;
      const int32_t stop = next < end ? next : end;
      const KeyRange own = seen_of(first, row);
      if (!own.is_empty()) read_token(first, token, own);
      for (; row < stop; row += kRows) {
        attend_rows(partition, row, stop - row < kRows ? stop : row + kRows, true);
      }
      row = stop;
    }
  }

  void read_token(int32_t first, int32_t token, KeyRange own) {
    if (!query_.has_tree || first + kPartitionKeys <= query_.context) {
      return words_.read(first, own);
    }
    // Keys before this step, then the token's ancestors.
    const KeyRange before{first + own.begin, query_.context};
    words_.read_copies(first, before.within(first, kPartitionKeys));
    query_.each_ancestor(token, [&](int32_t index, int32_t ancestor) {
      const int32_t key = index - first;
      if (key >= own.begin && key < own.end) words_.copy_token(query_.context + ancestor, key);
    });
  }

  // Whether rows [row, end), at most kRows, are done.
  bool attend_rows(int32_t partition, int32_t row, int32_t end, bool is_checked) {
    const int32_t first = partition * kPartitionKeys;
    const KeyRange seen = seen_by(first, row, end);
    if (seen.is_empty()) return true;
    const KeyRange products{seen.begin / kTileDepth, (seen.end + kTileDepth - 1) / kTileDepth};
    const RowBlock block{partition, first, row, end - row, products, is_checked};
    return block.count > kTileSide ? attend_block<2>(block) : attend_block<1>(block);
  }

  template <int kRowTiles>
  bool attend_block(const RowBlock& block) {
    score<kRowTiles>(block);
    Softmax softmax;
    for (int32_t r = 0; r < block.count; r += kLanes) {
      if (see_all(block, r)) {
        weigh_all(r, softmax);
      } else {
        for (int32_t i = r; i < block.count && i < r + kLanes; ++i) weigh(block, i, softmax);
      }
    }
    add_values<kRowTiles>(block.products);
    if (!block.is_checked && !are_finite(block)) return false;
    for (int32_t r = 0; r < block.count; r += kLanes) finish(block, r, softmax);
    return true;
  }

  // Whether the sixteen rows from `r` on see the whole partition.
  bool see_all(const RowBlock& block, int32_t r) const {
    if (r + kLanes > block.count) return false;
    for (int32_t i = r; i < r + kLanes; ++i) {
      const KeyRange seen = seen_of(block.first, block.row + i);
      if (seen.begin > 0 || seen.end < kPartitionKeys) return false;
    }
    return true;
  }

  // The sums of all rows that see something.
  bool are_finite(const RowBlock& block) const {
    const VecF zero = set1(0.0f);
    VecF differences = zero;
    for (int32_t r = 0; r < block.count; ++r) {
      if (seen_of(block.first, block.row + r).is_empty()) continue;
      for (int64_t c = 0; c < columns_; c += kLanes) {
        const VecF sum = load(sums_ + r * columns_ + c);
        differences = differences + (sum - sum);  // NaN of what is not finite
      }
    }
    return lanes_at_least(differences, zero) == (1u << kLanes) - 1;
  }

  template <int kRowTiles>
  void score(const RowBlock& block) {
    const bf16* queries = queries_ + block.row * depth_;
    int32_t i = block.products.begin;
    if constexpr (kRowTiles == 1) {
      for (; i + 2 <= block.products.end; i += 2) score_wide(i, queries);
    }
    for (; i < block.products.end; ++i) {
      clear_sums();
      for (int64_t k = 0; k < depth_; k += kTileDepth) {
        load_rows<kRowTiles>(queries + k, depth_);
        load_tile<6>(words_.keys(2 * i) + k / 2 * kBlockTokens, 64);
        load_tile<7>(words_.keys(2 * i + 1) + k / 2 * kBlockTokens, 64);
        add_products<kRowTiles>();
      }
      store_sums<kRowTiles>(scores_ + i * kTileDepth, kScoreStride, kTileSide);
    }
  }

  // Of 16 rows, the keys of products `i` and `i` + 1: one product alone waits for its own sums.
  void score_wide(int32_t i, const bf16* queries) {
    clear_sums();
    for (int64_t k = 0; k < depth_; k += kTileDepth) {
      const auto keys = [&](int block) {
        return words_.keys(2 * i + block) + k / 2 * kBlockTokens;
      };
      load_rows<1>(queries + k, depth_);
      add_wide(keys(0), keys(1), keys(2), keys(3), 64);
    }
    store_wide(scores_ + i * kTileDepth, kScoreStride);
  }

  // Row `r` of the block.
  void weigh(const RowBlock& block, int32_t r, Softmax& softmax) const {
    const KeyRange seen = seen_of(block.first, block.row + r);
    if (seen.is_empty()) return;
    float* scores = scores_ + r * kScoreStride;
    const int32_t begin = seen.begin / kLanes * kLanes;
    const int32_t end = (seen.end + kLanes - 1) / kLanes * kLanes;
    for (int32_t key = begin; key < seen.begin; ++key) scores[key] = -__builtin_inff();
    for (int32_t key = seen.end; key < end; ++key) scores[key] = -__builtin_inff();
    VecF largest = load(scores + begin);
    for (int32_t key = begin + kLanes; key < end; key += kLanes) {
      largest = max(largest, load(scores + key));
    }
    softmax.maxima[r] = reduce_max(largest) * scale_;
    bf16* weights = weights_ + r * kWeightStride;
    softmax.sums[r] = reduce_add(weigh_keys(scores, begin, end, softmax.maxima[r], weights));
    clear(weights, block.products.begin * kTileDepth, begin);
    clear(weights, end, block.products.end * kTileDepth);
  }

  // The sixteen rows from `r` on, which see the whole partition: the same for all at once.
  void weigh_all(int32_t r, Softmax& softmax) const {
    VecF largest[kLanes], sums[kLanes];
    for (int32_t i = 0; i < kLanes; ++i) {
      const float* scores = scores_ + (r + i) * kScoreStride;
      largest[i] = load(scores);
#pragma GCC unroll 16
      for (int32_t key = kLanes; key < kPartitionKeys; key += kLanes) {
        largest[i] = max(largest[i], load(scores + key));
      }
    }
    const VecF maxima = reduce_all(largest, [](VecF a, VecF b) { return max(a, b); });
    store(softmax.maxima + r, maxima * set1(scale_));
    for (int32_t i = 0; i < kLanes; ++i) {
      sums[i] = weigh_keys(scores_ + (r + i) * kScoreStride, 0, kPartitionKeys,
                           softmax.maxima[r + i], weights_ + (r + i) * kWeightStride);
    }
    store(softmax.sums + r, reduce_all(sums, [](VecF a, VecF b) { return a + b; }));
  }

  // Weights of keys [begin, end); their sums by lane.
  RTP_MEMBER VecF weigh_keys(const float* scores, int32_t begin, int32_t end, float maximum,
                             bf16* weights) const {
    const VecF factor = set1(scale_), shift = set1(-maximum);
    VecF sums = set1(0.0f);
    for (int32_t key = begin; key < end; key += kLanes) {
      const VecF weight = weight_of(fma(load(scores + key), factor, shift));
      sums = sums + weight;
      store(weights + key, weight);
    }
    return sums;
  }

  static void clear(bf16* weights, int32_t begin, int32_t end) {
    for (int32_t key = begin; key < end; key += kLanes) store(weights + key, set1(0.0f));
  }

  // Rows [r, r + 16), as many as there are, into their totals.
  void finish(const RowBlock& block, int32_t r, const Softmax& softmax) const {
    const int32_t end = block.count - r < kLanes ? block.count : r + kLanes;
    alignas(64) float maxima[kLanes] = {}, sums[kLanes] = {};
    for (int32_t i = r; i < end; ++i) {
      maxima[i - r] = total(block.row + i).maximum();
      sums[i - r] = total(block.row + i).sum();
    }
    const VecF next = load(softmax.maxima + r);
    const Merging merging(load(maxima), next);
    const VecF merged = merging.sum(load(sums), load(softmax.sums + r));
    for (int32_t i = r; i < end; ++i) {
      const int32_t row = block.row + i, lane = i - r;
      if (seen_of(block.first, row).is_empty()) continue;
      const float* own = sums_ + i * columns_;
      if (query_.partials || ranges_[row].begin / kPartitionKeys == block.partition) {
        const PartialRow first =
            query_.partials ? query_.partial(block.partition, row) : total(row);
        first.assign(own, softmax.maxima[i], softmax.sums[i]);
        continue;
      }
      total(row).add(own, merging.decay[lane], merging.next_decay[lane]);
      total(row).maximum() = merging.maximum[lane];
      total(row).sum() = merged[lane];
    }
  }

  template <int kRowTiles>
  void add_values(KeyRange products) const {
    int64_t c = 0;
    if constexpr (kRowTiles == 1) {
      for (; c + 4 * kTileSide <= columns_; c += 4 * kTileSide) add_values_wide(c, products);
    }
    for (; c < columns_; c += 2 * kTileSide) {
      // The second half of the last columns may not exist: then it is the first half again.
      const int64_t second = c + kTileSide < columns_ ? kTileSide : 0;
      clear_sums();
      for (int32_t i = products.begin; i < products.end; ++i) {
        const float* values = words_.values(i) + c;
        load_rows<kRowTiles>(weights_ + i * kTileDepth, kWeightStride);
        load_tile<6>(values, row_bytes());
        load_tile<7>(values + second, row_bytes());
        add_products<kRowTiles>();
      }
      store_sums<kRowTiles>(sums_ + c, columns_, second);
    }
  }

  void add_values_wide(int64_t c, KeyRange products) const {
    clear_sums();
    for (int32_t i = products.begin; i < products.end; ++i) {
      const float* values = words_.values(i) + c;
      load_rows<1>(weights_ + i * kTileDepth, kWeightStride);
      add_wide(values, values + kTileSide, values + 2 * kTileSide, values + 3 * kTileSide,
               row_bytes());
    }
    store_wide(sums_ + c, columns_);
  }

  int64_t row_bytes() const { return columns_ * static_cast<int64_t>(sizeof(float)); }

  const TileQuery<bf16> query_;
  Partition words_;
  const int64_t head_dim_, depth_, columns_;
  const float scale_;  // to exponents of 2

  float *scores_, *sums_, *totals_;
  bf16 *weights_, *queries_;
  KeyRange* ranges_;
};

}  // namespace rtp::RTP_ISA_NAMESPACE
