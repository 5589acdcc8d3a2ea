#include "sampling.h"

#include "sampling_row.h"
#include "scratch.h"

namespace rtp::RTP_ISA_NAMESPACE {
namespace {

constexpr double kLog2E = 1.4426950408889634;

// Below it, differences between logits overflow; the most likely token is already certain.
constexpr float kMinTemperature = 1e-6f;

// Memory for a row of `vocab_size`, in whole spans.
struct Scratch {
  explicit Scratch(int64_t vocab_size) {
    const int64_t size = num_spans(vocab_size) * kSpan;
    weights = thread_scratch(4 * size);
    bracket = weights + size;
    ids = reinterpret_cast<int32_t*>(bracket + size);
    maxima = bracket + 2 * size;
    sums = maxima + size / 2;
  }

  float *weights, *bracket, *maxima, *sums;
  int32_t* ids;
};

// Numbers from 0 to 1 in whole spans: zero beyond `count`.
struct Weights {
  float* values;
  int64_t count;

  void end_at(int64_t new_count) {
    count = new_count;
    for (int64_t i = count; i % kSpan; ++i) values[i] = 0;
  }
};

// Tokens that may still be chosen, by ascending id.
struct Candidates {
  Weights weights;  // logits until they are weighed
  int32_t* ids;     // null where index i is token i

  void keep_at_least(float least) {
    int64_t kept = 0;
    const auto keep = [&](int64_t index, float value) {
      weights.values[kept] = value;
      ids[kept++] = ids[index];
    };
    for_each_between(weights.values, weights.count, least, kInfinity, keep);
    weights.end_at(kept);
  }
};

void weigh(float* weights, const float* logits, int64_t n, float largest, float scale) {
  for_spans(logits, n, -kInfinity, [&](int64_t start, const float* span) {
    for (int i = 0; i < kSpan; i += kLanes) {
      store(weights + start + i, weight(load(span + i), set1(largest), set1(scale)));
    }
  });
}

float span_mass(const float* span, float least) {
  const VecF bound = set1(least);
  return span_sum(span, [&](VecF v) { return keep_at_least(v, bound); });
}

// The sum of the weights that are at least `least`. Since it has one order of additions, a smaller
// bound never gives less.
double mass_at_least(const Weights& weights, float least) {
  double mass = 0;
  for (int64_t start = 0; start < weights.count; start += kSpan) {
    mass += span_mass(weights.values + start, least);
  }
  return mass;
}

// The weights from `least` up to `beyond`, which is not among them.
Weights between(const Weights& weights, float least, float beyond, float* target) {
  int64_t count = 0;
  for_each_between(weights.values, weights.count, least, beyond,
                   [&](int64_t, float value) { target[count++] = value; });
  Weights found{target, 0};
  found.end_at(count);
  return found;
}

// A bound that the smallest set of the heaviest weights with `top_p` of the sum reaches, and no
// lighter weight does. It is searched by halves over the order of floats; when few weights are left
// between the search's two bounds, they alone are looked at from then on.
float top_p_bound(Weights weights, double top_p, float* bracket) {
  const double total = mass_at_least(weights, 0), target = top_p * total;
  int32_t reached = 0, missed = to_order(1.0f) + 1;
  double mass_reached = total, mass_missed = 0, mass_aside = 0;
  // All that are lighter than this hold less than 1 - top_p together.
  const double light = (1 - top_p) * total / static_cast<double>(weights.count);
  int32_t middle = to_order(static_cast<float>(light));
  while (weights.count > 1 && missed - reached > 1) {
    if (middle <= reached || middle >= missed) middle = reached + (missed - reached) / 2;
    const double mass = mass_aside + mass_at_least(weights, from_order(middle));
    (mass >= target ? reached : missed) = middle;
    (mass >= target ? mass_reached : mass_missed) = mass;
    const float least = from_order(reached);
    const double most_between = (mass_reached - mass_missed) / least;
    if (8 * most_between > static_cast<double>(weights.count)) continue;
    weights = between(weights, least, from_order(missed), bracket);
    mass_aside = mass_missed;
  }
  return from_order(reached);
}

// The index at `number` of the way, in [0, 1), through the weights that are at least `least`.
int64_t draw(const Weights& weights, float least, double number, float* sums) {
  const int64_t spans = num_spans(weights.count);
  double total = 0;
  for (int64_t span = 0; span < spans; ++span) {
    sums[span] = span_mass(weights.values + span * kSpan, least);
    total += sums[span];
  }
  const double target = number * total;
  double before = 0, reached = 0;
  int64_t start = 0;
  for (int64_t span = 0; span < spans && reached <= target; ++span) {
    if (sums[span] == 0) continue;
    start = span * kSpan;
    before = reached;
    reached += sums[span];
  }
  // A span's sums here and above are rounded each in its own way, so the target may lie just beyond
  // the second: then the span's last weight is meant.
  reached = before;
  int64_t chosen = start;
  for (int64_t i = start; i < start + kSpan && reached <= target; ++i) {
    const float value = weights.values[i];
    if (value == 0 || value < least) continue;
    chosen = i;
    reached += value;
  }
  return chosen;
}

int32_t first_largest(const float* logits, int64_t n, const LaneMaxima& maxima) {
  int64_t span = 0;
  while (!count_at_least(maxima.values + span * kWide, kWide, maxima.largest)) ++span;
  int64_t index = span * kSpan;
  while (index < n - 1 && logits[index] != maxima.largest) ++index;
  return static_cast<int32_t>(index);
}

// A logit that no token with a weight of `least` or more is below.
float logit_bound(float least, float largest, float scale) {
  const double bound = largest + (__builtin_log2(static_cast<double>(least)) - 0.01) / scale;
  const float rounded = bound < -0x1p127 ? -0x1p127f : static_cast<float>(bound);
  return from_order(to_order(rounded) - 1);
}

struct Filters {
  float min_p;
  int64_t top_k;
  float top_p;
};

// What min_p and top_k leave, weighed. Where one of them asks, only tokens that may pass are.
Candidates candidates_of(const float* logits, int64_t n, const LaneMaxima& maxima, float scale,
                         const Filters& filters, const Scratch& scratch) {
  const int64_t k = filters.top_k;
  const bool has_top_k = k > 0 && k < n;
  if (!has_top_k && filters.min_p <= 0) {
    weigh(scratch.weights, logits, n, maxima.largest, scale);
    return {{scratch.weights, n}, nullptr};
  }
  float least = -kInfinity;
  if (filters.min_p > 0) least = logit_bound(filters.min_p, maxima.largest, scale);
  if (has_top_k && k <= maxima.count) {
    const float bound = kth_bound(maxima.values, maxima.count, k, maxima.largest);
    least = bound > least ? bound : least;
  }
  Candidates kept{{scratch.weights, 0}, scratch.ids};
  Weights& weights = kept.weights;
  for_each_at_least(logits, n, maxima, least, [&](int64_t index, float value) {
    weights.values[weights.count] = value;
    kept.ids[weights.count++] = static_cast<int32_t>(index);
  });
  if (has_top_k && weights.count > k) {
    kept.keep_at_least(kth_bound(weights.values, weights.count, k, maxima.largest));
  }
  weigh(weights.values, weights.values, weights.count, maxima.largest, scale);
  if (filters.min_p > 0) kept.keep_at_least(filters.min_p);
  return kept;
}

int32_t sample_row(const Sample& op, int64_t row, const Scratch& scratch) {
  const float* logits = op.logits + row * op.stride;
  const LaneMaxima maxima = lane_maxima(logits, op.vocab_size, scratch.maxima);
  if (!(__builtin_fabsf(maxima.largest) < kInfinity)) return kNoToken;
  const float temperature = op.temperature ? op.temperature[row] : 0;
  if (temperature == 0) return first_largest(logits, op.vocab_size, maxima);
  const double divisor = temperature < kMinTemperature ? kMinTemperature : temperature;
  const Filters filters{op.min_p[row], op.top_k[row], op.top_p[row]};
  const Candidates kept = candidates_of(logits, op.vocab_size, maxima,
                                        static_cast<float>(kLog2E / divisor), filters, scratch);
  const float least =
      filters.top_p < 1 ? top_p_bound(kept.weights, filters.top_p, scratch.bracket) : 0;
  const int64_t index = draw(kept.weights, least, op.number[row], scratch.sums);
  return kept.ids ? kept.ids[index] : static_cast<int32_t>(index);
}

double log_of_sum(const float* logits, int64_t n, float largest) {
  const VecF scale = set1(static_cast<float>(kLog2E));
  double sum = 0;
  for_spans(logits, n, -kInfinity, [&](int64_t, const float* span) {
    sum += span_sum(span, [&](VecF v) { return weight(v, set1(largest), scale); });
  });
  return largest + __builtin_log(sum);
}

// Insertion into the best so far: equals come by ascending id and stay in that order.
void find_top(const float* logits, int64_t n, const LaneMaxima& maxima, int32_t* ids, int64_t k) {
  const float least =
      k <= maxima.count ? kth_bound(maxima.values, maxima.count, k, maxima.largest) : -kInfinity;
  int64_t count = 0;
  for_each_at_least(logits, n, maxima, least, [&](int64_t index, float value) {
    int64_t place = count < k ? count++ : k;
    for (; place > 0 && logits[ids[place - 1]] < value; --place) {
      if (place < k) ids[place] = ids[place - 1];
    }
    if (place < k) ids[place] = static_cast<int32_t>(index);
  });
}

void logprobs_row(const Logprobs& op, int64_t i, float* scratch) {
  const float* logits = op.logits + op.rows[i] * op.stride;
  const int64_t n = op.vocab_size, id = op.token_ids[i];
  const LaneMaxima maxima = lane_maxima(logits, n, scratch);
  int32_t* top_ids = op.top_ids + i * op.num_top;
  double* top = op.top + i * op.num_top;
  if (!(__builtin_fabsf(maxima.largest) < kInfinity)) {
    op.own[i] = __builtin_nan("");
    op.ranks[i] = 0;
    for (int64_t place = 0; place < op.num_top; ++place) {
      top_ids[place] = 0;
      top[place] = __builtin_nan("");
    }
    return;
  }
  const double normaliser = log_of_sum(logits, n, maxima.largest);
  const float own = logits[id], above = from_order(to_order(own + 0.0f) + 1);
  op.own[i] = own - normaliser;
  op.ranks[i] = static_cast<int32_t>(1 + count_at_least(logits, id, own) +
                                     count_at_least(logits + id + 1, n - id - 1, above));
  if (op.num_top) find_top(logits, n, maxima, top_ids, op.num_top);
  for (int64_t place = 0; place < op.num_top; ++place) {
    top[place] = logits[top_ids[place]] - normaliser;
  }
}

}  // namespace

void sample(const Sample& op, const Member& member) {
  const Scratch scratch(op.vocab_size);
  member.split(op.n, 1, Repeats::kYes, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) op.token_ids[row] = sample_row(op, row, scratch);
  });
}

void logprobs(const Logprobs& op, const Member& member) {
  float* scratch = thread_scratch(num_spans(op.vocab_size) * kWide);
  member.split(op.n, 1, Repeats::kNo, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) logprobs_row(op, row, scratch);
  });
}

}  // namespace rtp::RTP_ISA_NAMESPACE
