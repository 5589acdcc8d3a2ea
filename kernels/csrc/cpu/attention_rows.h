// The rows of a query tile while they pass over their keys: ranges, online softmax, partitions.
#pragma once

#include "attention.h"
#include "vec.h"

namespace rtp::RTP_ISA_NAMESPACE {

// Indices [begin, end) of keys that a row sees.
struct KeyRange {
  int32_t begin, end;

  bool is_empty() const { return begin >= end; }

  // What of it lies in [first, first + size), counted from `first`.
  KeyRange within(int32_t first, int32_t size) const {
    const int32_t low = begin - first, high = end - first;
    return {low > 0 ? low : 0, high < size ? high : size};
  }

  // The least range with both, and the keys in both.
  KeyRange joined(KeyRange other) const {
    return {begin < other.begin ? begin : other.begin, end > other.end ? end : other.end};
  }
  KeyRange shared(KeyRange other) const {
    return {begin > other.begin ? begin : other.begin, end < other.end ? end : other.end};
  }
};

// Keys of a sequence before this step's tokens.
RTP_INLINE int32_t context_of(const AttentionGeometry& step, int32_t seq) {
  return step.seq_lens[seq] - (step.query_start_loc[seq + 1] - step.query_start_loc[seq]);
}

// Of `token`, the sequence's token-th of this step.
RTP_INLINE KeyRange visible_keys(const AttentionGeometry& step, int32_t seq, int32_t token) {
  const int64_t mask =
      step.ancestor_mask ? step.ancestor_mask[step.query_start_loc[seq] + token] : 0;
  const int64_t own = mask ? __builtin_popcountll(mask) : token + 1;
  const int64_t end = context_of(step, seq) + own;
  const int64_t begin = step.window > 0 && end > step.window ? end - step.window : 0;
  return {static_cast<int32_t>(begin), static_cast<int32_t>(end)};
}

// Multiplies a row of accumulators.
RTP_INLINE void scale_row(float* row, int64_t columns, VecF factor) {
  for (int64_t c = 0; c < columns; c += kLanes) store(row + c, load(row + c) * factor);
}

// One partition's running state of one row.
struct OnlineSoftmax {
  float maximum;
  float sums[16];  // of weights, by lane

  void reset() {
    maximum = -__builtin_inff();
    for (float& sum : sums) sum = 0.0f;
  }
  float sum() const { return reduce_add(load(sums)); }
};

// The running maximum follows a tile's only when it is this far behind (in powers of 2), so that
// accumulators are seldom rescaled. Weights reach 2^kSlack at most; the quotient is the same.
constexpr float kSlack = 8.0f;

// Turns `count` registers of a tile's scores, times `scale` (> 0) exponents of 2, into weights.
// Rescales what the state and the accumulators hold when the maximum moves.
template <typename Weight>
RTP_INLINE void weigh_registers(OnlineSoftmax& state, const float* scores, int count, float scale,
                                Weight* weights, float* accumulators, int64_t columns) {
  VecF largest = load(scores);
#pragma GCC unroll 8
  for (int v = 1; v < count; ++v) largest = max(largest, load(scores + v * kLanes));
  const VecF factor = set1(scale);
  VecF sums = load(state.sums);
  if (any_above(largest * factor, set1(state.maximum + kSlack))) {
    const float maximum = reduce_max(largest) * scale;
    const VecF decay = exp2(set1(state.maximum - maximum));
    state.maximum = maximum;
    sums = sums * decay;
    scale_row(accumulators, columns, decay);
  }
  const VecF shift = set1(-state.maximum);
#pragma GCC unroll 8
  for (int v = 0; v < count; ++v) {
    const VecF weight = exp2(fma(load(scores + v * kLanes), factor, shift));
    sums = sums + weight;
    store(weights + v * kLanes, weight);
  }
  store(state.sums, sums);
}

// The weights of the keys in `range`, zero for others of the same register; no more is written.
template <typename Weight>
RTP_INLINE void weigh(OnlineSoftmax& state, float* scores, KeyRange range, float scale,
                      Weight* weights, float* accumulators, int64_t columns) {
  if (range.begin == 0 && range.end == kTileKeys) {
    return weigh_registers(state, scores, kTileKeys / kLanes, scale, weights, accumulators,
                           columns);
  }
  const int32_t first = range.begin / kLanes * kLanes;
  const int32_t count = (range.end - first + kLanes - 1) / kLanes;
  for (int32_t key = first; key < range.begin; ++key) scores[key] = -__builtin_inff();
  for (int32_t key = range.end; key < first + count * kLanes; ++key) {
    scores[key] = -__builtin_inff();
  }
  weigh_registers(state, scores + first, count, scale, weights + first, accumulators, columns);
}

// The rows of a query tile, `group` of each token.
struct TileRows {
  int32_t group;
  int64_t head_dim, columns;  // columns: head_dim, padded
  float scale;                // to exponents of 2
  float* queries;             // [rows][columns], words
  float* accumulators;        // [rows][columns]
  OnlineSoftmax* states;      // [rows]
  KeyRange* ranges;           // [tokens]
};

// How much two partitions' results count in their merger, a row a lane.
struct Merging {
  VecF maximum, decay, next_decay;

  RTP_MEMBER Merging(VecF first, VecF next)
      : maximum(max(first, next)), decay(exp2(first - maximum)), next_decay(exp2(next - maximum)) {}

  RTP_MEMBER VecF sum(VecF first, VecF next) const { return first * decay + next * next_decay; }
};

// A partition's result for a row, or the merger of several: accumulators, maximum, sum.
struct PartialRow {
  float* data;
  int64_t columns;

  float& maximum() const { return data[columns]; }
  float& sum() const { return data[columns + 1]; }

  void assign(const float* accumulators, float partition_maximum, float partition_sum) const {
    for (int64_t c = 0; c < columns; c += kLanes) store(data + c, load(accumulators + c));
    maximum() = partition_maximum;
    sum() = partition_sum;
  }

  // Takes in the partition that follows.
  void merge(const float* accumulators, float next_maximum, float next_sum) const {
    const Merging merging(set1(maximum()), set1(next_maximum));
    add(accumulators, merging.decay[0], merging.next_decay[0]);
    sum() = merging.sum(set1(sum()), set1(next_sum))[0];
    maximum() = merging.maximum[0];
  }

  void add(const float* accumulators, float decay, float next_decay) const {
    const VecF own = set1(decay), next = set1(next_decay);
    for (int64_t c = 0; c < columns; c += kLanes) {
      store(data + c, fma(load(accumulators + c), next, load(data + c) * own));
    }
  }

  template <typename T>
  void write(T* out, int64_t head_dim) const {
    const VecF factor = set1(1.0f / sum());
    int64_t c = 0;
    for (; c + kLanes <= head_dim; c += kLanes) store(out + c, load(data + c) * factor);
    if (const int rest = static_cast<int>(head_dim - c)) {
      store_first(out + c, load(data + c) * factor, rest);
    }
  }
};

}  // namespace rtp::RTP_ISA_NAMESPACE
