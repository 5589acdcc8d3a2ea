#include "activation.h"

#include "vec.h"

namespace rtp::RTP_ISA_NAMESPACE {
namespace {

constexpr int64_t kParallelElements = 1 << 14;

RTP_INLINE VecF gated(VecF gate, VecF up) {
  const VecF decay = exp2(min(set1(200.0f), gate * set1(-1.44269504f)));
  return gate / (set1(1.0f) + decay) * up;
}

template <typename T>
void gate_row(T* out, const T* gate, const T* up, int64_t d) {
  int64_t i = 0;
  for (; i + kLanes <= d; i += kLanes) store(out + i, gated(load(gate + i), load(up + i)));
  if (const int rest = static_cast<int>(d - i)) {
    store_first(out + i, gated(load_first(gate + i, rest), load_first(up + i, rest)), rest);
  }
}

template <typename T>
void run(const SiluAndMul& op) {
#pragma omp parallel for if (op.n * op.d > kParallelElements)
  for (int64_t row = 0; row < op.n; ++row) {
    const T* gate = static_cast<const T*>(op.gate_up) + row * op.gate_up_stride;
    gate_row(static_cast<T*>(op.out) + row * op.d, gate, gate + op.d, op.d);
  }
}

}  // namespace

void silu_and_mul(const SiluAndMul& op) {
  op.dtype == DType::kBf16 ? run<bf16>(op) : run<float>(op);
}

}  // namespace rtp::RTP_ISA_NAMESPACE
