#include "norm.h"

#include "vec.h"

namespace rtp::RTP_ISA_NAMESPACE {
namespace {

// Below this many elements a second thread costs more than it saves.
constexpr int64_t kParallelElements = 1 << 15;

// Four partial sums of squares, taken round robin by registers of the row, then added in pairs.
struct SumOfSquares {
  VecF parts[4] = {set1(0), set1(0), set1(0), set1(0)};

  void add(int64_t index, VecF v) {
    VecF& part = parts[index & 3];
    part = fma(v, v, part);
  }
  float total() const { return reduce_add((parts[0] + parts[1]) + (parts[2] + parts[3])); }
};

float inverse_rms(float sum, int64_t d, float eps) {
  return 1.0f / __builtin_sqrtf(sum / static_cast<float>(d) + eps);
}

template <typename T>
void scale_row(T* out, const T* x, const T* weight, int64_t d, float factor) {
  const VecF factors = set1(factor);
  int64_t i = 0;
  for (; i + kLanes <= d; i += kLanes) store(out + i, load(x + i) * factors * load(weight + i));
  if (const int rest = static_cast<int>(d - i)) {
    store_first(out + i, load_first(x + i, rest) * factors * load_first(weight + i, rest), rest);
  }
}

template <typename T>
void norm_row(T* out, const T* x, const T* weight, int64_t d, float eps) {
  SumOfSquares squares;
  int64_t i = 0;
  for (; i + kLanes <= d; i += kLanes) squares.add(i / kLanes, load(x + i));
  if (i < d) squares.add(i / kLanes, load_first(x + i, static_cast<int>(d - i)));
  scale_row(out, x, weight, d, inverse_rms(squares.total(), d, eps));
}

// The sum is rounded to T first: what is normalised is what the residual stream holds.
template <typename T>
void add_norm_row(T* out, const T* x, T* residual, const T* weight, int64_t d, float eps) {
  SumOfSquares squares;
  int64_t i = 0;
  for (; i + kLanes <= d; i += kLanes) {
    store(residual + i, load(residual + i) + load(x + i));
    squares.add(i / kLanes, load(residual + i));
  }
  if (const int rest = static_cast<int>(d - i)) {
    store_first(residual + i, load_first(residual + i, rest) + load_first(x + i, rest), rest);
    squares.add(i / kLanes, load_first(residual + i, rest));
  }
  scale_row(out, residual, weight, d, inverse_rms(squares.total(), d, eps));
}

template <typename T>
void run(const RmsNorm& op) {
  const int64_t rows = op.outer * op.inner;
#pragma omp parallel for if (rows * op.d > kParallelElements)
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t offset = row / op.inner * op.outer_stride + row % op.inner * op.inner_stride;
    norm_row(static_cast<T*>(op.out) + row * op.d, static_cast<const T*>(op.x) + offset,
             static_cast<const T*>(op.weight), op.d, op.eps);
  }
}

template <typename T>
void run(const AddRmsNorm& op) {
#pragma omp parallel for if (op.n * op.d > kParallelElements)
  for (int64_t row = 0; row < op.n; ++row) {
    add_norm_row(static_cast<T*>(op.out) + row * op.d,
                 static_cast<const T*>(op.x) + row * op.x_stride,
                 static_cast<T*>(op.residual) + row * op.residual_stride,
                 static_cast<const T*>(op.weight), op.d, op.eps);
  }
}

}  // namespace

void rms_norm(const RmsNorm& op) { op.dtype == DType::kBf16 ? run<bf16>(op) : run<float>(op); }

void add_rms_norm(const AddRmsNorm& op) {
  op.dtype == DType::kBf16 ? run<bf16>(op) : run<float>(op);
}

}  // namespace rtp::RTP_ISA_NAMESPACE
