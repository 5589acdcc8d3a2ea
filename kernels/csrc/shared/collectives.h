// What ranks of a group do together, in the calling thread. All ranks call the same in the same
// order, with equal sizes; all throw Ended. What is larger than a slot goes in pieces.
#pragma once

#include <vector>

#include "../cpu/types.h"
#include "rank_group.h"

namespace rtp {

void barrier(RankGroup& group);

// x [count] becomes the sum of all ranks', in float, in rank order, rounded once.
void all_reduce(RankGroup& group, void* x, int64_t count, DType dtype);

// out [size][bytes]: each rank's x.
void all_gather(RankGroup& group, void* out, const void* x, int64_t bytes);

// x of `root` becomes everybody's.
void broadcast(RankGroup& group, void* x, int64_t bytes, int root);

// Rows for each rank, in rank order; in two steps, so that there is memory for those that come.
class AllToAll {
 public:
  // Sends the first `counts[i]` rows to rank 0, and so on. `rows` must live until receive().
  AllToAll(RankGroup& group, const void* rows, int64_t row_bytes, std::vector<int64_t> counts);

  // How many rows come from each rank.
  std::vector<int64_t> counts() const;

  // Into `out` [sum of counts()], in rank order. Once, before the group does anything else.
  void receive(void* out);

 private:
  int64_t first_bytes() const;
  int64_t sent_rows(int from, int to) const { return sent_[from * group_.size() + to]; }
  int64_t sent_bytes(int from) const;
  void send_piece(int64_t round);
  void take_pieces(int64_t round, char* out) const;

  RankGroup& group_;
  const char* const rows_;
  const int64_t row_bytes_;
  const std::vector<int64_t> own_counts_;
  std::vector<int64_t> sent_;  // [from][to]
  uint32_t generation_ = 0;
};

}  // namespace rtp
