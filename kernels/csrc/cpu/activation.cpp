#include "activation.h"

#include "activation_row.h"

namespace rtp::RTP_ISA_NAMESPACE {
namespace {

template <typename T>
void run(const SiluAndMul& op, const Member& member) {
  for (int64_t row = member.begin(op.n); row < member.end(op.n); ++row) {
    const T* gate = static_cast<const T*>(op.gate_up) + row * op.gate_up_stride;
    gate_row(static_cast<T*>(op.out) + row * op.d, gate, gate + op.d, op.d);
  }
}

}  // namespace

void silu_and_mul(const SiluAndMul& op, const Member& member) {
  op.dtype == DType::kBf16 ? run<bf16>(op, member) : run<float>(op, member);
}

}  // namespace rtp::RTP_ISA_NAMESPACE
