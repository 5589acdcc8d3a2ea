#include "greedy_head.h"

#include <cmath>
#include <limits>
#include <memory>

#include "coded_strip.h"
#include "on_team.h"
#include "scratch.h"

namespace rtp {
namespace {

// Of more rows the product is as fast as the screen.
constexpr int64_t kMaxScreenedRows = 12;

// Computing one strip in so many costs what is saved; a screen that leaves more has not helped.
constexpr int64_t kStripsPerLeft = 8;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// A product's rows on their way through the screen and the strips it leaves.
class ScreenedProduct {
 public:
  ScreenedProduct(const Linear& head, const Screen& screen) : head_(head), op_{} {
    op_.screen = screen;
    op_.x = static_cast<const bf16*>(head.x);
    op_.m = head.m;
    op_.x_stride = head.x_stride;
    op_.rows = head.rows;
    op_.norm_weight = static_cast<const bf16*>(head.norm_weight);
    op_.eps = head.eps;
    Pieces needed(nullptr);
    take(needed);
    Pieces pieces(reinterpret_cast<float*>(call_memory(needed.floats() * sizeof(float))));
    take(pieces);
  }

  // How many strips were left; -1 for too many, or where the rows are not finite.
  int64_t run(int32_t* token_ids) {
    const auto kernel = RTP_DISPATCH(screen);
    run_team(true, [&](const Member& member) { kernel(op_, member); });
    if (!find_left()) return -1;
    compute_left();
    for (int64_t row = 0; row < op_.m; ++row) token_ids[row] = largest(row);
    return num_left_;
  }

 private:
  int64_t num_strips() const { return op_.screen.num_strips(); }
  int64_t max_left() const { return num_strips() / kStripsPerLeft; }

  void take(Pieces& pieces) {
    const int64_t k = op_.screen.k, m = op_.m;
    pieces.take(op_.normed, m * k);
    pieces.take(op_.digits, m * 2 * ((k + 3) / 4 * 4));
    pieces.take(op_.numbers, m);
    pieces.take(op_.most, m * num_strips());
    pieces.take(op_.least, m * num_strips());
    pieces.take(left_, max_left());
    pieces.take(logits_, max_left() * m * kStripOutputs);
    pieces.take(floors_, m);
  }

  // The strips that some row's largest may be in, ascending.
  bool find_left() {
    const int64_t strips = num_strips();
    for (int64_t row = 0; row < op_.m; ++row) {
      if (std::isnan(op_.numbers[row].length)) return false;
      const float* least = op_.least + row * strips;
      float floor = -kInfinity;
      for (int64_t i = 0; i < strips; ++i) floor = least[i] > floor ? least[i] : floor;
      floors_[row] = floor;
    }
    num_left_ = 0;
    for (int64_t i = 0; i < strips; ++i) {
      if (!may_have_largest(i)) continue;
      if (num_left_ == max_left()) return false;
      left_[num_left_++] = i;
    }
    return true;
  }

  bool may_have_largest(int64_t strip) const {
    for (int64_t row = 0; row < op_.m; ++row) {
      if (op_.most[row * num_strips() + strip] >= floors_[row]) return true;
    }
    return false;
  }

  void compute_left() {
    const auto kernel = RTP_DISPATCH(linear);
    const int64_t products = num_left_ * op_.m * kStripOutputs * op_.screen.k;
    run_team(products > kParallelProducts, [&](const Member& member) {
      member.split(num_left_, 1, Repeats::kYes, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) kernel(strip_product(i), Member::alone());
      });
    });
  }

  // Of the i-th strip left, by the norms that the screen has made.
  Linear strip_product(int64_t i) const {
    const int64_t k = op_.screen.k;
    Linear op{};
    op.weight = head_.weight;
    op.weight.data = strip_of(head_.weight, left_[i]);
    op.weight.n = outputs_of(left_[i]);
    op.x = op_.normed;
    op.x_stride = k;
    op.out = logits_of(i, 0);
    op.out_dtype = DType::kF32;
    op.out_stride = kStripOutputs;
    op.m = op_.m;
    return op;
  }

  int64_t outputs_of(int64_t strip) const {
    const int64_t count = op_.screen.n - strip * kStripOutputs;
    return count < kStripOutputs ? count : kStripOutputs;
  }

  float* logits_of(int64_t i, int64_t row) const {
    return logits_ + (i * op_.m + row) * kStripOutputs;
  }

  int32_t largest(int64_t row) const {
    float largest = -kInfinity;
    int64_t id = kNoToken;
    for (int64_t i = 0; i < num_left_; ++i) {
      const float* logits = logits_of(i, row);
      for (int64_t output = 0; output < outputs_of(left_[i]); ++output) {
        if (std::isnan(logits[output])) return kNoToken;
        if (logits[output] > largest) {
          largest = logits[output];
          id = left_[i] * kStripOutputs + output;
        }
      }
    }
    return std::isfinite(largest) ? static_cast<int32_t>(id) : kNoToken;
  }

  const Linear& head_;
  Screening op_;
  int64_t* left_;
  int64_t num_left_ = 0;
  float *logits_, *floors_;
};

}  // namespace

int64_t greedy(int32_t* token_ids, const Linear& head, const Screen* screen) {
  if (screen && head.m <= kMaxScreenedRows) {
    const int64_t num_left = ScreenedProduct(head, *screen).run(token_ids);
    if (num_left >= 0) return num_left;
  }
  const int64_t vocab_size = head.weight.n;
  const auto logits = std::make_unique_for_overwrite<float[]>(head.m * vocab_size);
  Linear product = head;
  product.out = logits.get();
  multiply(product);
  Sample op{};
  op.token_ids = token_ids;
  op.logits = logits.get();
  op.n = head.m;
  op.vocab_size = op.stride = vocab_size;
  sample(op);
  return (vocab_size + kStripOutputs - 1) / kStripOutputs;
}

}  // namespace rtp
