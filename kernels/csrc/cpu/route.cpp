#include "route.h"

#include "vec.h"

namespace rtp::RTP_ISA_NAMESPACE {
namespace {

constexpr float kLog2E = 1.44269504f;

RTP_INLINE float first_lane(VecF v) {
  float lanes[kLanes];
  store(lanes, v);
  return lanes[0];
}

// e^x for x <= 0.
RTP_INLINE VecF decay(VecF x) { return exp2(x * set1(kLog2E)); }

RTP_INLINE float sum_of_decays(const float* logits, int64_t count, VecF largest) {
  VecF sum = set1(0);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) sum = sum + decay(load(logits + i) - largest);
  float total = reduce_add(sum);
  for (; i < count; ++i) total += first_lane(decay(set1(logits[i]) - largest));
  return total;
}

// The ids of the `top_k` largest, by falling logit and rising id. NaN keeps a place that it has.
RTP_INLINE void choose(const float* logits, int64_t count, int64_t top_k, int32_t* ids) {
  float chosen[kMaxExpertsPerRow];
  for (int64_t id = 0; id < count; ++id) {
    const float value = logits[id];
    int64_t place = id < top_k ? id : top_k;
    if (place == top_k && !(value > chosen[--place])) continue;
    for (; place > 0 && value > chosen[place - 1]; --place) {
      chosen[place] = chosen[place - 1];
      ids[place] = ids[place - 1];
    }
    chosen[place] = value;
    ids[place] = static_cast<int32_t>(id);
  }
}

}  // namespace

void route(const Route& op, int64_t begin, int64_t end) {
  // Stored when final: others may read what a late thread stores again.
  int32_t ids[kMaxExpertsPerRow];
  float decays[kMaxExpertsPerRow];
  for (int64_t row = begin; row < end; ++row) {
    const float* logits = op.logits + row * op.logits_stride;
    choose(logits, op.num_experts, op.top_k, ids);
    const VecF largest = set1(logits[ids[0]]);
    float total = 0;
    for (int64_t i = 0; i < op.top_k; ++i) {
      decays[i] = first_lane(decay(set1(logits[ids[i]]) - largest));
      total += decays[i];
    }
    if (!op.is_renormalized) total = sum_of_decays(logits, op.num_experts, largest);
    for (int64_t i = 0; i < op.top_k; ++i) {
      op.ids[row * op.top_k + i] = ids[i];
      op.weights[row * op.top_k + i] = decays[i] / total;
    }
  }
}

void sigmoid(float* out, const float* x, int64_t n, int64_t stride) {
  for (int64_t i = 0; i < n; ++i) {
    const VecF exponent = min(set1(126.0f), set1(x[i * stride] * -kLog2E));
    out[i] = 1.0f / (1.0f + first_lane(exp2(exponent)));
  }
}

}  // namespace rtp::RTP_ISA_NAMESPACE
