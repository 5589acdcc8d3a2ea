#include "attention.h"

#include "attention_pack.h"
#include "attention_rows.h"
#include "attention_units.h"
#include "scratch.h"

namespace rtp::RTP_ISA_NAMESPACE {
namespace {

constexpr float kLog2E = 1.44269504f;

// One thread's passage over a query tile's keys.
template <typename Units>
class TileRun {
  using Element = typename Units::Element;
  using Weight = typename Units::Weight;

 public:
  TileRun(const PagedAttention& op, const AttentionWork& work, const QueryTile& tile)
      : op_(op),
        tile_(tile),
        group_(static_cast<int32_t>(op.num_heads / op.num_kv_heads)),
        rows_(tile.num_tokens * group_),
        units_(static_cast<int32_t>(op.head_dim / Units::kElements)),
        columns_(padded(op.head_dim)),
        context_(static_cast<int32_t>(context_of(op, tile.seq))),
        scale_(op.scale * kLog2E),
        partials_(tile.partials < 0 ? nullptr : work.partials + tile.partials) {
    for (int32_t t = 0; t < tile.num_tokens && op.ancestor_mask; ++t) has_tree_ |= mask(t) != 0;
    last_key_ = context_ + (has_tree_ ? 0 : tile.first_token + tile.num_tokens);
  }

  void attend(const Span& span) {
    allocate();
    load_queries();
    for (int32_t p = span.partition_begin; p < span.partition_end; ++p) attend_partition(p);
    if (partials_) return;
    for (int32_t row = 0; row < rows_; ++row) total(row).write(out(row), op_.head_dim);
  }

  // Of a tile whose partitions were computed by several spans.
  void merge() const {
    for (int32_t row = 0; row < rows_; ++row) {
      const KeyRange range = range_of(row / group_);
      const int32_t first = range.begin / kPartitionKeys;
      const PartialRow merged = partial(first, row);
      for (int32_t p = first + 1; p * kPartitionKeys < range.end; ++p) {
        const PartialRow next = partial(p, row);
        merged.merge(next.data, next.maximum(), next.sum());
      }
      merged.write(out(row), op_.head_dim);
    }
  }

 private:
  int64_t mask(int32_t token) const {
    return op_.ancestor_mask[op_.query_start_loc[tile_.seq] + tile_.first_token + token];
  }
  KeyRange range_of(int32_t token) const {
    return visible_keys(op_, tile_.seq, tile_.first_token + token);
  }
  int64_t token_of(int32_t row) const {
    return op_.query_start_loc[tile_.seq] + tile_.first_token + row / group_;
  }
  int64_t head_of(int32_t row) const { return tile_.kv_head * group_ + row % group_; }
  Element* out(int32_t row) const {
    const int64_t offset = (token_of(row) * op_.num_heads + head_of(row)) * op_.head_dim;
    return static_cast<Element*>(op_.out) + offset;
  }
  PartialRow total(int32_t row) const {
    return {totals_ + row * partial_floats(op_.head_dim), columns_};
  }
  PartialRow partial(int32_t partition, int32_t row) const {
    const int64_t index = int64_t{partition - tile_.partition_begin} * rows_ + row;
    return {partials_ + index * partial_floats(op_.head_dim), columns_};
  }

  void allocate() {
    constexpr int64_t kState = sizeof(OnlineSoftmax) / sizeof(float);
    constexpr int64_t kRange = sizeof(KeyRange) / sizeof(float);
    const int64_t packed = kTileKeys * columns_, block = kBlockRows * kTileKeys;
    const int64_t per_row[] = {columns_, columns_, partial_floats(op_.head_dim), kState, kRange};
    int64_t floats = 2 * packed + 2 * block;
    for (const int64_t size : per_row) floats += aligned(rows_ * size);
    float* next = thread_scratch(floats);
    const auto take = [&](int64_t size) {
      float* const taken = next;
      next += aligned(size);
      return taken;
    };
    keys_ = take(packed);
    values_ = take(packed);
    scores_ = take(block);
    weights_ = reinterpret_cast<Weight*>(take(block));
    queries_ = take(rows_ * columns_);
    accumulators_ = take(rows_ * columns_);
    totals_ = take(rows_ * partial_floats(op_.head_dim));
    states_ = reinterpret_cast<OnlineSoftmax*>(take(rows_ * kState));
    ranges_ = reinterpret_cast<KeyRange*>(take(rows_ * kRange));
  }

  // A whole number of cache lines.
  static int64_t aligned(int64_t floats) { return (floats + 15) / 16 * 16; }

  void load_queries() {
    for (int32_t row = 0; row < rows_; ++row) {
      ranges_[row] = range_of(row / group_);
      const Element* query = static_cast<const Element*>(op_.query) +
                             token_of(row) * op_.query_stride + head_of(row) * op_.head_dim;
      float* target = queries_ + row * columns_;
      for (int32_t u = 0; u < units_; u += kLanes) {
        const int count = units_ - u < kLanes ? units_ - u : kLanes;
        store(target + u, Units::load_units(query + u * Units::kElements, count));
      }
    }
  }

  void attend_partition(int32_t partition) {
    const int32_t first = partition * kPartitionKeys;
    for (int32_t row = 0; row < rows_; ++row) {
      states_[row].reset();
      float* accumulators = accumulators_ + row * columns_;
      for (int64_t c = 0; c < columns_; c += kLanes) store(accumulators + c, set1(0.0f));
    }
    for (int32_t key = first; key < first + kPartitionKeys; key += kTileKeys) {
      if (has_tree_ && key + kTileKeys > context_) {
        for (int32_t token = 0; token < tile_.num_tokens; ++token) {
          attend_tile(key, token * group_, group_, token);
        }
      } else {
        attend_tile(key, 0, rows_, 0);
      }
    }
    for (int32_t row = 0; row < rows_; ++row) {
      if (!ranges_[row].within(first, kPartitionKeys).is_empty()) finish(partition, row);
    }
  }

  void finish(int32_t partition, int32_t row) const {
    const float* accumulators = accumulators_ + row * columns_;
    const float maximum = states_[row].maximum, sum = states_[row].sum();
    if (partials_) return partial(partition, row).assign(accumulators, maximum, sum);
    if (ranges_[row].begin / kPartitionKeys == partition) {
      return total(row).assign(accumulators, maximum, sum);
    }
    total(row).merge(accumulators, maximum, sum);
  }

  // Keys [first, first + kTileKeys) and the rows [row, row + count) that see any of them. `token`
  // says whose keys they are where a tree of tokens makes the rows' keys differ.
  void attend_tile(int32_t first, int32_t row, int32_t count, int32_t token) {
    KeyRange seen{kTileKeys, 0};
    int32_t begin = row + count, end = row;
    for (int32_t r = row; r < row + count; ++r) {
      const KeyRange range = ranges_[r].within(first, kTileKeys);
      if (range.is_empty()) continue;
      seen = {range.begin < seen.begin ? range.begin : seen.begin,
              range.end > seen.end ? range.end : seen.end};
      begin = r < begin ? r : begin;
      end = r + 1;
    }
    if (seen.is_empty()) return;
    pack(first, {first + seen.begin, first + seen.end}, token);
    for (int32_t r = begin; r < end; r += kBlockRows) {
      attend_block(first, r, end - r < kBlockRows ? end - r : kBlockRows);
    }
  }

  // Keys `keys` of the tile at `first`, and a request for the tile after it.
  void pack(int32_t first, KeyRange keys, int32_t token) {
    const int64_t head_size = op_.block_size * op_.head_dim;
    const KeyMap map{op_.block_tables + tile_.seq * op_.block_tables_stride, op_.block_size,
                     op_.num_kv_heads * head_size, tile_.kv_head * head_size, op_.head_dim};
    const int32_t following = first + kTileKeys, stop = following + kTileKeys;
    TileOffsets offsets, next;
    if (has_tree_ && keys.end > context_ && mask(token) != 0) {
      map.find(first, keys.begin, context_, offsets);
      find_ancestors(map, first, keys, token, offsets);
    } else {
      map.find(first, keys.begin, keys.end, offsets);
    }
    map.find(following, following, stop < last_key_ ? stop : last_key_, next);
    pack_keys<Units>(static_cast<const Element*>(op_.key_cache), offsets, next, op_.head_dim,
                     keys_);
    pack_values<Units>(static_cast<const Element*>(op_.value_cache), offsets, next, op_.head_dim,
                       values_);
  }

  // The i-th token of this step that `token` sees is the key of index context + i.
  void find_ancestors(const KeyMap& map, int32_t first, KeyRange keys, int32_t token,
                      TileOffsets& offsets) const {
    int32_t index = context_;
    for (auto bits = static_cast<uint64_t>(mask(token)); bits; bits &= bits - 1, ++index) {
      if (index < keys.begin || index >= keys.end) continue;
      offsets.of[index - first] = map.row(context_ + __builtin_ctzll(bits));
    }
  }

  void attend_block(int32_t first, int32_t row, int32_t count) {
    mac<Units>(
        count,
        {queries_ + row * columns_, keys_, scores_, columns_, kTileKeys, kTileKeys, 0, units_},
        kTileKeys, false);
    KeyRange ranges[kBlockRows];
    KeyRange shared{0, kTileKeys / Units::kElements};
    for (int32_t r = 0; r < count; ++r) {
      const KeyRange range = ranges[r] = ranges_[row + r].within(first, kTileKeys);
      const KeyRange units = whole_units(range);
      shared = {units.begin > shared.begin ? units.begin : shared.begin,
                units.end < shared.end ? units.end : shared.end};
      if (range.is_empty()) continue;
      weigh(states_[row + r], scores_ + r * kTileKeys, range, scale_, weights_ + r * kTileKeys,
            accumulators_ + (row + r) * columns_, columns_);
    }
    add_values(row, count, ranges, shared);
  }

  // Each row's values in ascending order: what lies before the units that all rows of the block
  // see whole, those, and what lies behind.
  void add_values(int32_t row, int32_t count, const KeyRange* ranges, KeyRange shared) {
    const bool has_shared = !shared.is_empty();
    for (int32_t r = 0; r < count; ++r) {
      if (ranges[r].is_empty()) continue;
      if (ranges[r].begin % Units::kElements) add_half(row, r, ranges[r].begin, false);
      if (has_shared) add_units(row, r, 1, {whole_units(ranges[r]).begin, shared.begin});
    }
    if (has_shared) add_units(row, 0, count, shared);
    for (int32_t r = 0; r < count; ++r) {
      if (ranges[r].is_empty()) continue;
      const KeyRange units = whole_units(ranges[r]);
      add_units(row, r, 1, {has_shared ? shared.end : units.begin, units.end});
      if (ranges[r].end % Units::kElements) add_half(row, r, ranges[r].end - 1, true);
    }
  }

  KeyRange whole_units(KeyRange range) const {
    return {(range.begin + Units::kElements - 1) / Units::kElements, range.end / Units::kElements};
  }

  MacOperands value_operands(int32_t row, int32_t r, KeyRange units) const {
    const float* weights = reinterpret_cast<const float*>(weights_ + r * kTileKeys);
    return {weights,
            values_,
            accumulators_ + (row + r) * columns_,
            kTileKeys / Units::kElements,
            columns_,
            columns_,
            units.begin,
            units.end};
  }

  void add_units(int32_t row, int32_t r, int32_t count, KeyRange units) {
    if (units.is_empty()) return;
    mac<Units>(count, value_operands(row, r, units), static_cast<int>(columns_), true);
  }

  // One element of a unit whose other element the row does not see.
  void add_half(int32_t row, int32_t r, int32_t key, bool even) {
    if constexpr (Units::kElements == 2) {
      const MacOperands op = value_operands(row, r, {key / 2, key / 2 + 1});
      const VecF weight = set1(op.a[op.begin]);
      for (int64_t c = 0; c < columns_; c += kLanes) {
        const VecF pair = load(op.b + op.begin * op.b_stride + c);
        const VecF half = even ? Units::keep_even(pair) : Units::keep_odd(pair);
        store(op.c + c, Units::mac(load(op.c + c), weight, half));
      }
    }
  }

  const PagedAttention& op_;
  const QueryTile& tile_;
  const int32_t group_, rows_, units_;
  const int64_t columns_;
  const int32_t context_;
  const float scale_;
  float* const partials_;
  bool has_tree_ = false;
  int32_t last_key_;  // of those worth asking for in advance

  float *keys_, *values_, *scores_, *queries_, *accumulators_, *totals_;
  Weight* weights_;
  OnlineSoftmax* states_;
  KeyRange* ranges_;
};

template <typename Units>
void run(const PagedAttention& op, const AttentionWork& work) {
#pragma omp parallel if (work.is_parallel)
  {
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < work.num_spans; ++i) {
      const Span& span = work.spans[i];
      TileRun<Units>(op, work, work.tiles[span.tile]).attend(span);
    }
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < work.num_split_tiles; ++i) {
      TileRun<Units>(op, work, work.tiles[work.split_tiles[i]]).merge();
    }
  }
}

}  // namespace

void run_attention(const PagedAttention& op, const AttentionWork& work) {
  if (op.dtype == DType::kF32) return run<SingleUnits<float>>(op, work);
#if defined(RTP_ISA_avx512bf16)
  run<PairUnits>(op, work);
#else
  run<SingleUnits<bf16>>(op, work);
#endif
}

}  // namespace rtp::RTP_ISA_NAMESPACE
