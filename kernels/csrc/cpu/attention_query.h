// The rows of a query tile: whose they are, what they see, where their results go.
#pragma once

#include "attention_rows.h"
#include "scratch.h"

namespace rtp::RTP_ISA_NAMESPACE {

constexpr float kLog2E = 1.44269504f;

template <typename Element>
struct TileQuery {
  const PagedAttention& op;
  const AttentionGeometry& step;
  const QueryTile& tile;
  const int32_t group, rows;
  const int64_t columns;  // head_dim, padded
  const int32_t context;
  float* const partials;  // null where one span makes the tile
  bool has_tree = false;

  TileQuery(const PagedAttention& op_, const QueryTile& tile_)
      : op(op_),
        step(op_.geometry),
        tile(tile_),
        group(static_cast<int32_t>(step.num_heads / step.num_kv_heads)),
        rows(tile_.num_tokens * group),
        columns(padded(step.head_dim)),
        context(context_of(step, tile_.seq)),
        partials(tile_.partials < 0 ? nullptr : op_.partials + tile_.partials) {
    for (int32_t t = 0; t < tile.num_tokens && step.ancestor_mask; ++t) has_tree |= mask(t) != 0;
  }

  int64_t mask(int32_t token) const {
    return step.ancestor_mask[step.query_start_loc[tile.seq] + tile.first_token + token];
  }
  KeyRange range_of(int32_t token) const {
    return visible_keys(step, tile.seq, tile.first_token + token);
  }
  const Element* query(int32_t row) const {
    return static_cast<const Element*>(op.query) + token_of(row) * op.query_stride +
           head_of(row) * step.head_dim;
  }
  Element* out(int32_t row) const {
    const int64_t offset = (token_of(row) * step.num_heads + head_of(row)) * step.head_dim;
    return static_cast<Element*>(op.out) + offset;
  }

  // Calls copy(index, ancestor): the ancestor-th token of this step that `token` sees is the key of
  // that index.
  template <typename Copy>
  void each_ancestor(int32_t token, Copy&& copy) const {
    auto bits = static_cast<uint64_t>(mask(token));
    if (bits == 0) {
      for (int32_t t = 0; t <= tile.first_token + token; ++t) copy(context + t, t);
    }
    for (int32_t index = context; bits; bits &= bits - 1, ++index) {
      copy(index, __builtin_ctzll(bits));
    }
  }

  // Where a partition's result of a row goes, if there are partials.
  PartialRow partial(int32_t partition, int32_t row) const {
    const int64_t index = int64_t{partition - tile.partition_begin} * rows + row;
    return {partials + index * partial_floats(step.head_dim), columns};
  }

  // Of a tile whose partitions were computed by several spans.
  void merge() const {
    const PartialRow merged{thread_scratch(partial_floats(step.head_dim)), columns};
    for (int32_t row = 0; row < rows; ++row) {
      const KeyRange range = range_of(row / group);
      const int32_t first = range.begin / kPartitionKeys;
      const PartialRow start = partial(first, row);
      merged.assign(start.data, start.maximum(), start.sum());
      for (int32_t p = first + 1; p * kPartitionKeys < range.end; ++p) {
        const PartialRow next = partial(p, row);
        merged.merge(next.data, next.maximum(), next.sum());
      }
      merged.write(out(row), step.head_dim);
    }
  }

 private:
  int64_t token_of(int32_t row) const {
    return step.query_start_loc[tile.seq] + tile.first_token + row / group;
  }
  int64_t head_of(int32_t row) const { return tile.kv_head * group + row % group; }
};

}  // namespace rtp::RTP_ISA_NAMESPACE
