#include "rank_exchange.h"

#include <algorithm>

#include "fetch.h"
#include "rank_sum.h"

namespace rtp {
namespace {

// A power of two, so that places go on where generations wrap around.
constexpr uint32_t kMaxPlaces = 4;

// Of a sum; less is not worth another thread.
constexpr int64_t kGrain = 2048;

int64_t itemsize(DType dtype) { return dtype == DType::kBf16 ? 2 : 4; }

}  // namespace

RankExchange::RankExchange(RankGroup& group, int num_sums, int64_t num_rows, int64_t columns)
    : group_(group), num_sums_(num_sums) {
  const int64_t row_bytes = columns * static_cast<int64_t>(sizeof(float));
  const int64_t fitting = std::max<int64_t>(1, group.slot_bytes() / row_bytes);
  rows_per_piece_ = std::clamp<int64_t>(num_rows, 1, fitting);
  num_pieces_ = static_cast<int>((num_rows + rows_per_piece_ - 1) / rows_per_piece_);
  piece_bytes_ = (rows_per_piece_ * row_bytes + 63) / 64 * 64;
  places_per_half_ = kMaxPlaces;
  while (places_per_half_ > 1 && places_per_half_ * piece_bytes_ > group.slot_bytes()) {
    places_per_half_ /= 2;
  }
  first_generation_ = group.begin(static_cast<uint32_t>(num_sums * num_pieces_));
}

// Others store over a place of theirs when this rank has arrived one generation before; and the
// next call may cut the halves otherwise, so at the last generation only that one is still read.
int RankExchange::needed(int stage, int sum, int piece) const {
  const bool is_last = sum == num_sums_ - 1 && piece == num_pieces_ - 1;
  const int late = is_last ? 0 : 2 * static_cast<int>(places_per_half_) - 2;
  return stage - late;
}

char* RankExchange::slot(int rank, uint32_t generation) const {
  return group_.slot(rank, generation) + generation / 2 % places_per_half_ * piece_bytes_;
}

void RankExchange::add(const Linear& op, int sum, int first_stage, const Member& member) {
  const int64_t columns = op.weight.n;
  for (int piece = 0; piece < num_pieces_; ++piece) {
    if (piece) member.come_to(first_stage + piece, needed(first_stage + piece, sum, piece));
    const uint32_t generation = first_generation_ + sum * num_pieces_ + piece;
    const int64_t first = piece * rows_per_piece_;
    Linear product = op;
    product.m = std::min(rows_per_piece_, op.m - first);
    product.x = static_cast<const char*>(op.x) + first * op.x_stride * itemsize(op.weight.dtype);
    product.out = slot(group_.rank(), generation);
    product.out_dtype = DType::kF32;
    product.out_stride = columns;
    product.residual = nullptr;
    RTP_DISPATCH(linear)(product, member);
    member.each([](int share) { return share == 0 ? 1 : 0; }, Repeats::kYes,
                [&](int, int) { meet(generation, member.ahead()); });
    if (has_ended()) return;
    RankSum total{};
    total.dtype = DType::kF32;
    total.num_ranks = group_.size();
    for (int rank = 0; rank < group_.size(); ++rank) total.parts[rank] = slot(rank, generation);
    total.out_dtype = op.out_dtype;
    const int64_t offset = first * op.out_stride * itemsize(op.out_dtype);
    total.residual = static_cast<const char*>(op.residual) + offset;
    total.out = static_cast<char*>(op.out) + offset;
    member.split(product.m * columns, kGrain, Repeats::kYes,
                 [&](int64_t begin, int64_t end) { RTP_DISPATCH(rank_sum)(total, begin, end); });
  }
}

// Whoever repeats it says and sees the same.
void RankExchange::meet(uint32_t generation, const Ahead& ahead) {
  try {
    group_.arrive(generation);
    fetch_until([&] { return group_.has_arrived(generation); }, ahead);
    group_.wait(generation);
  } catch (const Ended& ended) {
    if (!is_ending_.test_and_set()) cause_ = ended;
    has_ended_.store(true, std::memory_order_release);
  }
}

void RankExchange::check() const {
  if (has_ended()) throw *cause_;
}

}  // namespace rtp
