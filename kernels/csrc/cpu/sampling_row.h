// Passes over one row of floats, in spans. Sums have 16 lanes at every level, so levels whose fma
// is one operation agree.
#pragma once

#include "vec.h"

namespace rtp::RTP_ISA_NAMESPACE {
namespace {

constexpr int kSpan = 256;
constexpr int kWide = 16;
constexpr int kRegisters = kWide / kLanes;
constexpr float kInfinity = __builtin_inff();

constexpr int64_t num_spans(int64_t n) { return (n + kSpan - 1) / kSpan; }

// Calls body(start, span) with all spans of x; the last is a copy, filled up with `fill`.
template <typename Body>
RTP_INLINE void for_spans(const float* x, int64_t n, float fill, Body&& body) {
  int64_t start = 0;
  for (; start + kSpan <= n; start += kSpan) body(start, x + start);
  if (start == n) return;
  float tail[kSpan];
  for (int i = 0; i < kSpan; ++i) tail[i] = start + i < n ? x[start + i] : fill;
  body(start, static_cast<const float*>(tail));
}

// The largest of each lane of each span. At least k values of the row reach the k-th largest of
// these, and a span without such a lane need not be looked at.
struct LaneMaxima {
  float* values;  // [num_spans(n), kWide]
  int64_t count;
  float largest;  // NaN if any value is
};

RTP_INLINE LaneMaxima lane_maxima(const float* x, int64_t n, float* values) {
  unsigned ordered = ~0u;
  VecF largest = set1(-kInfinity);
  for_spans(x, n, -kInfinity, [&](int64_t start, const float* span) {
    for (int reg = 0; reg < kRegisters; ++reg) {
      const float* lanes = span + reg * kLanes;
      VecF top = set1(-kInfinity);
      for (int i = 0; i < kSpan; i += kWide) {
        const VecF v = load(lanes + i);
        ordered &= lanes_at_least(v, v);
        top = max(top, v);
      }
      store(values + start / kSpan * kWide + reg * kLanes, top);
      largest = max(largest, top);
    }
  });
  const bool has_nan = ~ordered & ((1u << kLanes) - 1);
  return {values, num_spans(n) * kWide, has_nan ? __builtin_nanf("") : reduce_max(largest)};
}

// Calls body(index, value) for those of x that are at least `least` and less than `beyond`, in
// order.
template <typename Body>
RTP_INLINE void for_each_between(const float* x, int64_t n, float least, float beyond,
                                 Body&& body) {
  const auto visit = [&](int64_t start, VecF v, unsigned lanes) {
    unsigned found = lanes_at_least(v, set1(least)) & ~lanes_at_least(v, set1(beyond)) & lanes;
    for (; found; found &= found - 1) {
      const int64_t index = start + __builtin_ctz(found);
      body(index, x[index]);
    }
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) visit(i, load(x + i), ~0u);
  if (const int rest = static_cast<int>(n - i)) {
    visit(i, load_first(x + i, rest), (1u << rest) - 1);
  }
}

// The same without an upper end, by way of the row's lane maxima.
template <typename Body>
RTP_INLINE void for_each_at_least(const float* x, int64_t n, const LaneMaxima& maxima, float least,
                                  Body&& body) {
  for (int64_t start = 0; start < n; start += kSpan) {
    const float* lanes = maxima.values + start / kSpan * kWide;
    unsigned found = 0;
    for (int i = 0; i < kWide; i += kLanes) found |= lanes_at_least(load(lanes + i), set1(least));
    if (!found) continue;
    const int64_t size = n - start < kSpan ? n - start : kSpan;
    for_each_between(x + start, size, least, kInfinity,
                     [&](int64_t index, float value) { body(start + index, value); });
  }
}

RTP_INLINE int64_t count_at_least(const float* x, int64_t n, float least) {
  const VecF bound = set1(least);
  int64_t count = 0, i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    count += __builtin_popcount(lanes_at_least(load(x + i), bound));
  }
  for (; i < n; ++i) count += x[i] >= least;
  return count;
}

// Floats as integers of the same order, and back.
RTP_INLINE int32_t to_order(float value) {
  int32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits ^ (bits >> 31 & 0x7fffffff);
}

RTP_INLINE float from_order(int32_t order) {
  const int32_t bits = order ^ (order >> 31 & 0x7fffffff);
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

// A bound that the k-th largest reaches and the next smaller does not, for 1 <= k <= n.
RTP_INLINE float kth_bound(const float* x, int64_t n, int64_t k, float largest) {
  int64_t reached = to_order(-kInfinity), missed = int64_t{to_order(largest)} + 1;
  while (missed - reached > 1) {
    const int64_t middle = reached + (missed - reached) / 2;
    const float bound = from_order(static_cast<int32_t>(middle));
    const int64_t count = count_at_least(x, n, bound);
    if (count == k) return bound;
    (count > k ? reached : missed) = middle;
  }
  return from_order(static_cast<int32_t>(reached));
}

// 2^((x - largest) * scale), exactly 1 at the largest, and 0 where it would not be a normal number:
// those take the processor a hundred times as long.
RTP_INLINE VecF weight(VecF x, VecF largest, VecF scale) {
  constexpr float kSmallest = 0x1p-126f;
  const VecF w = exp2(max(set1(-126.0f), (x - largest) * scale));
  return keep_at_least(w, set1(kSmallest * (1 + 0x1p-23f)));
}

// Sixteen lanes of a span, each summed in order, then added in halves.
template <typename Term>
RTP_INLINE float span_sum(const float* span, Term&& term) {
  VecF sums[kRegisters];
  for (int reg = 0; reg < kRegisters; ++reg) {
    sums[reg] = set1(0);
    for (int i = reg * kLanes; i < kSpan; i += kWide) {
      sums[reg] = sums[reg] + term(load(span + i));
    }
  }
  for (int reg = 1; reg < kRegisters; ++reg) sums[0] = sums[0] + sums[reg];
  return reduce_add(sums[0]);
}

}  // namespace
}  // namespace rtp::RTP_ISA_NAMESPACE
