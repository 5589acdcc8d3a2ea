#include "moe_sublayer.h"

#include <atomic>
#include <stdexcept>
#include <string>

#include "norm.h"
#include "route.h"

namespace rtp {
namespace {

// So few rows are routed by one thread, which saves a wait.
constexpr int64_t kFewRows = 16;

// At least, of a unit.
constexpr int64_t kRoutedRows = 8;

// The parts of a workspace, each on cache lines of its own.
class Parcels {
 public:
  explicit Parcels(char* memory) : memory_(memory) {}

  template <typename T>
  void take(T*& parcel, int64_t count, int64_t itemsize = sizeof(T)) {
    parcel = reinterpret_cast<T*>(memory_ + bytes_);
    bytes_ += (count * itemsize + 63) / 64 * 64;
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* const memory_;
  int64_t bytes_ = 0;
};

int64_t itemsize(DType dtype) { return dtype == DType::kBf16 ? 2 : 4; }

}  // namespace

// The parts of a workspace.
struct MoeSublayer::Buffers {
  float* logits;        // [num_tokens, router outputs]
  char* normed;         // [num_tokens, hidden_size]
  int32_t* ids;         // [num_tokens, top_k]
  float* weights;       // the same
  ExpertGroups routed;  // its starts are the place's kept words
  ExpertGroups shared;  // every token
  char *hidden, *shared_hidden;
  int64_t bytes;

  Buffers(const Parts& parts, const Step& step, const Place& place) {
    const int64_t n = step.num_tokens, pairs = n * parts.top_k, size = itemsize(parts.dtype);
    Parcels parcels(place.workspace);
    parcels.take(logits, n * parts.router.weight.n);
    parcels.take(normed, n * step.hidden_size, size);
    parcels.take(ids, pairs);
    parcels.take(weights, pairs);
    routed.starts = place.kept;
    parcels.take(routed.rows, pairs);
    parcels.take(routed.weights, pairs);
    parcels.take(hidden, pairs * hidden_stride(parts.experts.inner_size), size);
    const int64_t shared_rows = parts.shared.count ? n : 0;
    parcels.take(shared.starts, 2);
    parcels.take(shared.rows, shared_rows);
    parcels.take(shared.weights, shared_rows);
    parcels.take(shared_hidden, shared_rows * hidden_stride(parts.shared.inner_size), size);
    bytes = parcels.bytes();
  }
};

void MoeSublayer::check(const Step& step) const {
  const int64_t hidden_size = parts_.router.weight.k;
  if (step.dtype != parts_.dtype || step.hidden_size != hidden_size) {
    throw std::invalid_argument("run_sublayers: residual must have the model's type and " +
                                std::to_string(hidden_size) + " columns");
  }
}

int64_t MoeSublayer::workspace_bytes(const Step& step) const {
  return Buffers(parts_, step, Place{}).bytes;
}

Ahead MoeSublayer::first_reads(const Step& step, const Member& member) const {
  return RTP_DISPATCH(first_weights)(router(step, nullptr, nullptr), member);
}

void MoeSublayer::run(const Step& step, const Place& place, const Member& member,
                      const Ahead& next) const {
  const Buffers buffers(parts_, step, place);
  member.reads_next({});
  RTP_DISPATCH(linear)(router(step, place.residual, buffers.logits), member);
  route(step, place, buffers, member);
  const Experts op = experts(step, place, buffers);
  RTP_DISPATCH(gate_experts)(op, member);
  member.reads_next(next);
  RTP_DISPATCH(sum_experts)(op, member);
}

void MoeSublayer::finish(const int32_t* kept) const {
  for (int64_t expert = 0; expert < parts_.experts.count; ++expert) {
    const int32_t count = kept[expert + 1] - kept[expert];
    // Several threads may run steps over one model.
    if (count) std::atomic_ref(parts_.load[expert]).fetch_add(count, std::memory_order_relaxed);
  }
}

Linear MoeSublayer::router(const Step& step, const void* residual, void* logits) const {
  Linear op{};
  op.weight = parts_.router.weight;
  op.bias = parts_.router.bias;
  op.x = residual;
  op.out = logits;
  op.out_dtype = DType::kF32;
  op.m = step.num_tokens;
  op.x_stride = step.hidden_size;
  op.out_stride = op.weight.n;
  op.prologue = Prologue::kRmsNorm;
  op.norm_weight = parts_.norm.weight;
  op.eps = parts_.norm.eps;
  return op;
}

void MoeSublayer::route(const Step& step, const Place& place, const Buffers& buffers,
                        const Member& member) const {
  const int64_t n = step.num_tokens, num_experts = parts_.experts.count;
  Route op{};
  op.logits = buffers.logits;
  op.n = n;
  op.num_experts = num_experts;
  op.logits_stride = parts_.router.weight.n;
  op.top_k = parts_.top_k;
  op.is_renormalized = parts_.is_renormalized;
  op.ids = buffers.ids;
  op.weights = buffers.weights;
  RmsNorm norm{};
  norm.dtype = parts_.dtype;
  norm.weight = parts_.norm.weight;
  norm.outer = 1;
  norm.d = step.hidden_size;
  norm.inner_stride = step.hidden_size;
  norm.eps = parts_.norm.eps;
  const auto run_rows = [&](int64_t begin, int64_t end) {
    const int64_t offset = begin * step.hidden_size * itemsize(parts_.dtype);
    RmsNorm own = norm;
    own.x = static_cast<const char*>(place.residual) + offset;
    own.out = buffers.normed + offset;
    own.inner = end - begin;
    RTP_DISPATCH(rms_norm)(own, Member::alone());
    RTP_DISPATCH(route)(op, begin, end);
    if (!parts_.shared.count) return;
    RTP_DISPATCH(sigmoid)
    (buffers.shared.weights + begin, op.logits + begin * op.logits_stride + num_experts,
     end - begin, op.logits_stride);
    for (int64_t row = begin; row < end; ++row) {
      buffers.shared.rows[row] = static_cast<int32_t>(row);
    }
  };
  const auto group = [&] {
    group_by_expert(buffers.routed, op.ids, op.weights, n, op.top_k, 0, num_experts);
    buffers.shared.starts[0] = 0;
    buffers.shared.starts[1] = static_cast<int32_t>(n);
  };
  const bool is_few = n <= kFewRows;
  if (!is_few) member.split(n, kRoutedRows, Repeats::kYes, run_rows);
  member.split(1, 1, Repeats::kYes, [&](int64_t, int64_t) {
    if (is_few) run_rows(0, n);
    group();
  });
}

Experts MoeSublayer::experts(const Step& step, const Place& place, const Buffers& buffers) const {
  Experts op{};
  op.passes[0] = {parts_.experts, buffers.routed, buffers.hidden, false};
  op.passes[1] = {parts_.shared, buffers.shared, buffers.shared_hidden, true};
  op.num_passes = parts_.shared.count ? 2 : 1;
  op.x = buffers.normed;
  op.n = step.num_tokens;
  op.residual = place.residual;
  op.out = place.out;
  return op;
}

}  // namespace rtp
