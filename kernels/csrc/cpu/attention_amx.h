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

  // The first partition of span `index`, or none for -1.
  static NextPartition after(const PagedAttention& op, const AttentionWork& work, int32_t index) {
    if (index < 0) return {};
    const Span& span = work.spans[index];
    return {CachedHead(op, work.tiles[span.tile]), span.partition_begin * kPartitionBlocks};
  }

  // `after` is what this thread reads next.
  void attend(const Span& span, const NextPartition& after) {
    Pieces needed(nullptr);
    take(needed);
    Pieces pieces(thread_scratch(needed.floats()));
    take(pieces);
    load_queries();
    for (int32_t p = span.partition_begin; p < span.partition_end; ++p) {
      const NextPartition own{words_.head(), (p + 1) * kPartitionBlocks};
      next_ = p + 1 < span.partition_end ? own : after;
      attend_partition(p);
    }
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

  struct Softmax {
    float maximum, sum;
  };

  void take(Pieces& pieces) {
    words_.take(pieces);
    pieces.take(scores_, kRows * kScoreStride);
    pieces.take(weights_, kRows * kWeightStride);
    pieces.take(sums_, kRows * columns_);
    pieces.take(queries_, (query_.rows + kRows) * depth_);  // a block reads whole registers
    pieces.take(totals_, query_.rows * partial_floats(head_dim_));
    pieces.take(ranges_, query_.tile.num_tokens);
  }

  PartialRow total(int32_t row) const {
    return {totals_ + row * partial_floats(head_dim_), columns_};
  }

  void load_queries() {
    for (int32_t t = 0; t < query_.tile.num_tokens; ++t) ranges_[t] = query_.range_of(t);
    for (int32_t row = 0; row < query_.rows; ++row) {
      bf16* target = queries_ + row * depth_;
      __builtin_memcpy(target, query_.query(row), head_dim_ * sizeof(bf16));
      for (int64_t i = head_dim_; i < depth_; ++i) target[i] = bf16{};
    }
  }

  // What a row sees of the partition at key `first`.
  KeyRange seen_of(int32_t first, int32_t row) const {
    return ranges_[row / query_.group].within(first, kPartitionKeys);
  }
  // What any of rows [row, end) sees.
  KeyRange seen_by(int32_t first, int32_t row, int32_t end) const {
    KeyRange seen{kPartitionKeys, 0};
    for (int32_t t = row / query_.group; t <= (end - 1) / query_.group; ++t) {
      const KeyRange range = ranges_[t].within(first, kPartitionKeys);
      if (!range.is_empty()) seen = seen.joined(range);
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
    words_.read(first, seen, next_);
    for (int32_t row = 0; row < query_.rows; row += kRows) {
      const int32_t end = query_.rows - row < kRows ? query_.rows : row + kRows;
      if (attend_rows(partition, row, end, false)) continue;
      attend_tokens(partition, row, end);
      words_.read(first, seen, {});
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
      return words_.read(first, own, {});
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
    Softmax states[kRows];
    for (int32_t r = 0; r < block.count; ++r) {
      const KeyRange seen = seen_of(block.first, block.row + r);
      if (!seen.is_empty()) states[r] = weigh(r, seen, block.products);
    }
    add_values<kRowTiles>(block.products);
    if (!block.is_checked && !are_finite(block)) return false;
    for (int32_t r = 0; r < block.count; ++r) {
      const int32_t row = block.row + r;
      if (seen_of(block.first, row).is_empty()) continue;
      query_.finish(block.partition, row, ranges_[row / query_.group], total(row),
                    sums_ + r * columns_, states[r].maximum, states[r].sum);
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
      fetch_next_keys(i);
      clear_sums();
      for (int64_t k = 0; k < depth_; k += kTileDepth) {
        load_rows<kRowTiles>(queries + k, depth_);
        load_tile<6>(words_.keys(2 * i) + k / 2 * kBlockTokens, 64);
        load_tile<7>(words_.keys(2 * i + 1) + k / 2 * kBlockTokens, 64);
        add_products<kRowTiles>();
      }
      store_sums<kRowTiles>(scores_ + i * kTileDepth, kScoreStride, kTileSide);
    }
    next_ = {};
  }

  // Of 16 rows, the keys of products `i` and `i` + 1: one product alone waits for its own sums.
  void score_wide(int32_t i, const bf16* queries) {
    fetch_next_keys(i);
    fetch_next_keys(i + 1);
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

  void fetch_next_keys(int32_t product) const {
    for (int32_t i = 0; i < kProductBlocks; ++i) {
      next_.head.fetch_keys(next_.block + product * kProductBlocks + i);
    }
  }

  // Row `r` of the block, which sees `seen` of the partition.
  Softmax weigh(int32_t r, KeyRange seen, KeyRange products) const {
    float* scores = scores_ + r * kScoreStride;
    bf16* weights = weights_ + r * kWeightStride;
    const int32_t begin = seen.begin / kLanes * kLanes;
    const int32_t end = (seen.end + kLanes - 1) / kLanes * kLanes;
    for (int32_t key = begin; key < seen.begin; ++key) scores[key] = -__builtin_inff();
    for (int32_t key = seen.end; key < end; ++key) scores[key] = -__builtin_inff();
    VecF largest = load(scores + begin);
    for (int32_t key = begin + kLanes; key < end; key += kLanes) {
      largest = max(largest, load(scores + key));
    }
    const float maximum = reduce_max(largest) * scale_;
    const VecF factor = set1(scale_), shift = set1(-maximum);
    VecF sums = set1(0.0f);
    for (int32_t key = begin; key < end; key += kLanes) {
      const VecF weight = exp2(fma(load(scores + key), factor, shift));
      sums = sums + weight;
      store(weights + key, weight);
    }
    clear(weights, products.begin * kTileDepth, begin);
    clear(weights, end, products.end * kTileDepth);
    return {maximum, reduce_add(sums)};
  }

  static void clear(bf16* weights, int32_t begin, int32_t end) {
    for (int32_t key = begin; key < end; key += kLanes) store(weights + key, set1(0.0f));
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
  const float scale_;   // to exponents of 2
  NextPartition next_;  // not asked for yet

  float *scores_, *sums_, *totals_;
  bf16 *weights_, *queries_;
  KeyRange* ranges_;
};

}  // namespace rtp::RTP_ISA_NAMESPACE
