#include "norm.h"

#include "norm_row.h"

namespace rtp::RTP_ISA_NAMESPACE {
namespace {

template <typename T>
void run(const RmsNorm& op, const Member& member) {
  member.split(op.outer * op.inner, 1, Repeats::kYes, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t offset = row / op.inner * op.outer_stride + row % op.inner * op.inner_stride;
      norm_row(static_cast<T*>(op.out) + row * op.d, static_cast<const T*>(op.x) + offset,
               static_cast<const T*>(op.weight), op.d, op.eps);
    }
  });
}

}  // namespace

void rms_norm(const RmsNorm& op, const Member& member) {
  op.dtype == DType::kBf16 ? run<bf16>(op, member) : run<float>(op, member);
}

}  // namespace rtp::RTP_ISA_NAMESPACE
