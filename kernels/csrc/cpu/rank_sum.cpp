#include "rank_sum.h"

#include "vec.h"

namespace rtp::RTP_ISA_NAMESPACE {
namespace {

template <typename Part, typename Out>
void sum(const RankSum& op, int64_t begin, int64_t end) {
  const auto part = [&](int rank) { return static_cast<const Part*>(op.parts[rank]); };
  const Out* residual = static_cast<const Out*>(op.residual);
  Out* out = static_cast<Out*>(op.out);
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) {
    VecF total = load(part(0) + i);
    for (int rank = 1; rank < op.num_ranks; ++rank) total = total + load(part(rank) + i);
    store(out + i, residual ? load(residual + i) + total : total);
  }
  if (i == end) return;
  const int left = static_cast<int>(end - i);
  VecF total = load_first(part(0) + i, left);
  for (int rank = 1; rank < op.num_ranks; ++rank) total = total + load_first(part(rank) + i, left);
  store_first(out + i, residual ? load_first(residual + i, left) + total : total, left);
}

}  // namespace

void rank_sum(const RankSum& op, int64_t begin, int64_t end) {
  if (op.dtype == DType::kBf16) {
    op.out_dtype == DType::kBf16 ? sum<bf16, bf16>(op, begin, end)
                                 : sum<bf16, float>(op, begin, end);
  } else {
    op.out_dtype == DType::kBf16 ? sum<float, bf16>(op, begin, end)
                                 : sum<float, float>(op, begin, end);
  }
}

}  // namespace rtp::RTP_ISA_NAMESPACE
