#include "activation.h"

#include "activation_row.h"

namespace rtp::RTP_ISA_NAMESPACE {
namespace {

template <typename T>
void run(const SiluAndMul& op, const Member& member) {
  member.split(op.n, 1, Repeats::kYes, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* gate = static_cast<const T*>(op.gate_up) + row * op.gate_up_stride;
      gate_row(static_cast<T*>(op.out) + row * op.d, gate, gate + op.d, op.d);
    }
  });
}

}  // namespace

void silu_and_mul(const SiluAndMul& op, const Member& member) {
  op.dtype == DType::kBf16 ? run<bf16>(op, member) : run<float>(op, member);
}

}  // namespace rtp::RTP_ISA_NAMESPACE
