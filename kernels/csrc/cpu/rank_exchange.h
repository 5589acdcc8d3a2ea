// Sums of products that several ranks make in parts, within one call of the team:
//
//   product, in float, into this rank's slot | arrive and wait for all ranks | residual + all slots
//
// in phases like any others. A thread that is late reads slots of other ranks, so a rank may only
// arrive where that allows the others to store again once its threads are past what was there
// (needed). The halves of a slot area are cut into several places where the products are small, so
// that a thread may be late by some sublayers; ranks need not cut alike.
#pragma once

#include <atomic>
#include <optional>

#include "../shared/rank_group.h"
#include "gemm.h"

namespace rtp {

class RankExchange {
 public:
  // For `num_sums` sums in a row of `num_rows` rows of `columns`, in one call.
  RankExchange(RankGroup& group, int num_sums, int64_t num_rows, int64_t columns);

  // Rows that do not fit in a slot go in so many pieces.
  int num_pieces() const { return num_pieces_; }

  // The stage at which all members must be before one goes on from `stage`, where sum `sum` is
  // made.
  int needed(int stage, int sum, int piece) const;

  // op.residual + the ranks' sum of op's products, into op.out. Members come with stage
  // `first_stage` for the first piece; the others take those that follow.
  void add(const Linear& op, int sum, int first_stage, const Member& member);

  // Whether the group has ended: members may leave.
  bool has_ended() const { return has_ended_.load(std::memory_order_acquire); }
  // Throws what has ended it.
  void check() const;

 private:
  void meet(uint32_t generation, const Ahead& ahead);
  char* slot(int rank, uint32_t generation) const;

  RankGroup& group_;
  const int num_sums_;
  int64_t rows_per_piece_, piece_bytes_;
  int num_pieces_;
  uint32_t places_per_half_, first_generation_;
  std::atomic_flag is_ending_ = ATOMIC_FLAG_INIT;
  std::atomic<bool> has_ended_{false};
  std::optional<Ended> cause_;
};

}  // namespace rtp
