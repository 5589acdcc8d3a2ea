#include "norm.h"

#include "norm_row.h"

namespace rtp::RTP_ISA_NAMESPACE {
namespace {

template <typename T>
void run(const RmsNorm& op, const Member& member) {
  const int64_t rows = op.outer * op.inner;
  for (int64_t row = member.begin(rows); row < member.end(rows); ++row) {
    const int64_t offset = row / op.inner * op.outer_stride + row % op.inner * op.inner_stride;
    norm_row(static_cast<T*>(op.out) + row * op.d, static_cast<const T*>(op.x) + offset,
             static_cast<const T*>(op.weight), op.d, op.eps);
  }
}

}  // namespace

void rms_norm(const RmsNorm& op, const Member& member) {
  op.dtype == DType::kBf16 ? run<bf16>(op, member) : run<float>(op, member);
}

}  // namespace rtp::RTP_ISA_NAMESPACE
